"""Releases of an engine on an index of this machine, and without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library.engines import engine_packages
from gpucheck.library.engines.engine_packages import NoPackages
from gpucheck.model.errors import InfrastructureError
from gpucheck.tools.bisect.sources.base import Unbuildable
from gpucheck.tools.bisect.sources.engine_releases import CACHED, EngineReleases
from tests.library.conftest import Index, library_files

pytest.importorskip("remotezip")

NEEDED = "vllm/model_executor/models/gpt_oss.py"
MakeWheel = Callable[..., bytes]


@pytest.fixture(autouse=True)
def pip(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """No packages are needed; raises what is put into it."""
    raises: list[Exception] = []

    def packages(name: str, root: Path, cache: Path | None = None) -> Path:
        if raises:
            raise raises.pop()
        return root

    monkeypatch.setattr("gpucheck.library.engines.engine_fetch.packages_for", packages)
    return raises


def offer(index: Index, make_wheel: MakeWheel, generations: Mapping[str, str]) -> None:
    """Wheels of vllm by version, each with the stand-in library of a generation; "" stands for no gpt-oss."""
    wheels = {}
    for version, generation in generations.items():
        files = library_files(generation or "v3.5")
        held = {f"vllm/third_party/triton_kernels/{name}": text for name, text in files.items()}
        held |= {NEEDED: f"VERSION = {version!r}"} if generation else {}
        wheels[f"vllm-{version}-py3-none-any.whl"] = make_wheel("", held)
    index.offer(wheels)


def test_every_final_release_is_a_candidate_with_the_library_that_it_is_served_with(
    index: Index, make_wheel: MakeWheel, tmp_path: Path
) -> None:
    offer(index, make_wheel, {"1.9": "v3.5", "1.10": "v3.5", "1.11rc1": "v3.5", "2.0": "v3.7", "0.8": "v3.5"})
    source = EngineReleases("vllm", "1.9", "2.0")
    found = source.candidates()
    assert [candidate.name for candidate in found] == ["1.9", "1.10", "2.0"]
    assert len({candidate.key for candidate in found}) == 3, "an engine without changes gets no release"
    with source.prepared(found[1], tmp_path) as prepared:
        assert (prepared.engine, prepared.library, prepared.paths) == ("vllm==1.10", None, ())
    assert source.details(found[1]) == ["--engine vllm==1.10"]
    assert source.notes(found[0], found[1]) == []
    (note,) = source.notes(found[1], found[2])
    assert note.startswith("the library differs too, content unknown (") and "in 1.10 and" in note


def test_one_library_for_all_releases(index: Index, make_wheel: MakeWheel, library: Path, tmp_path: Path) -> None:
    offer(index, make_wheel, {"1.0": "v3.5", "2.0": "v3.7"})
    source = EngineReleases("vllm", "1.0", "2.0", str(library))
    found = source.candidates()
    with source.prepared(found[0], tmp_path) as prepared:
        assert (prepared.engine, prepared.library) == ("vllm==1.0", library)
    assert source.notes(*found) == []


def test_releases_that_cannot_be_taken_say_why(
    index: Index, make_wheel: MakeWheel, tmp_path: Path, pip: list[Exception]
) -> None:
    offer(index, make_wheel, {"1.0": "", "2.0": "v3.7"})
    source = EngineReleases("vllm", "1.0", "2.0")
    old, new = source.candidates()
    with (
        pytest.raises(Unbuildable, match="holds no vllm/model_executor/models/gpt_oss.py"),
        source.prepared(old, tmp_path),
    ):
        pass
    pip.append(NoPackages("the packages that vllm imports cannot be had.\n  pip ..."))
    with pytest.raises(Unbuildable, match=r"cannot be had\.$"), source.prepared(new, tmp_path):
        pass
    pip.append(InfrastructureError("pip cannot reach an index"))
    with pytest.raises(InfrastructureError, match="cannot reach"), source.prepared(new, tmp_path):
        pass


def test_without_an_index_the_cache_is_searched_and_that_is_said(
    index: Index, make_wheel: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(index, make_wheel, {"1.0": "v3.5", "1.1": "v3.5", "1.2": "v3.5"})
    source = EngineReleases("vllm", "1.0", "1.2")
    for candidate in source.candidates()[::2]:
        with source.prepared(candidate, tmp_path):
            pass
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    old, new = source.candidates()
    assert (old.name, new.name, old.title) == ("1.0", "1.2", CACHED)
    with source.prepared(new, tmp_path) as prepared:
        assert prepared.engine == "vllm==1.2"
    (note,) = source.notes(old, new)
    assert "only the cache was searched" in note and "between 1.0 and 1.2" in note
    with pytest.raises(InfrastructureError, match="cannot look up the versions of vllm"):
        EngineReleases("vllm", "1.0", "1.1").candidates()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("ERROR: No matching distribution found for gguf>=99", NoPackages),
        ("ERROR: ResolutionImpossible: for help visit", NoPackages),
        ("WARNING: Retrying after connection broken by x\nERROR: No matching distribution found", InfrastructureError),
        ("ERROR: the disk is full", InfrastructureError),
    ],
)
def test_only_an_index_that_answered_can_say_that_no_packages_fit(
    said: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> Any:
        return type("Done", (), {"returncode": 1, "stderr": said})

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(InfrastructureError, match="cannot be had") as caught:
        engine_packages._pip("vllm", "install")
    assert type(caught.value) is kind
