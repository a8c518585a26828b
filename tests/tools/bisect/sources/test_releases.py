"""Releases and versions on an index of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gpucheck.library.copies import PACKAGE
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.tools.bisect.sources.base import Unbuildable
from gpucheck.tools.bisect.sources.package_versions import between
from gpucheck.tools.bisect.sources.releases import Releases
from tests.library.conftest import Index, library_files

MakeWheel = Callable[..., bytes]


def offer(index: Index, make_wheel: MakeWheel, generations: Mapping[str, str], **attributes: str) -> None:
    """Wheels of vllm by version, each with the stand-in library of a generation; "" stands for none."""
    wheels = {}
    for version, generation in generations.items():
        files = library_files(generation) if generation else {"other.py": ""}
        wheels[f"vllm-{version}-py3-none-any.whl"] = make_wheel(files=files)
    index.offer(wheels, attributes={f"vllm-{version}-py3-none-any.whl": text for version, text in attributes.items()})


def test_contents_and_the_releases_that_carry_them(index: Index, make_wheel: MakeWheel, tmp_path: Path) -> None:
    offer(index, make_wheel, {"1.0": "v3.5", "1.2": "v3.5", "1.10": "v3.6", "2.0": "v3.5", "2.1": "", "0.9": "v3.7"})
    source = Releases("vllm", "1.0", "2.1")
    found = source.candidates()
    assert [candidate.name for candidate in found] == ["1.0", "1.10", "2.0", "2.1"]
    assert found[0].key == found[2].key != found[1].key
    assert found[0].title.endswith(", 1.0 - 1.2 (2 releases)") and found[0].title.startswith("content unknown (")
    assert "hold no genuine triton_kernels" in found[3].lacks
    with source.prepared(found[1], tmp_path) as prepared:
        assert "SparseMatrix" in (prepared.library / PACKAGE / "tensor.py").read_text()
        assert tmp_path in prepared.library.parents, "a copy of its own, not the cached one"
    with pytest.raises(Unbuildable, match="hold no genuine"), source.prepared(found[3], tmp_path):
        pass
    assert source.details(found[1]) == ["--library wheel:vllm==1.10"]


def test_versions_in_order_without_those_that_nobody_installs(index: Index, make_wheel: MakeWheel) -> None:
    names = ["1.9", "1.10", "1.10.post1", "1.11rc1", "1.11", "1.12+cu118", "1.13", "2.0", "2.1"]
    wheels = {f"vllm-{name}-py3-none-any.whl": b"" for name in names}
    index.offer(wheels, attributes={"vllm-1.13-py3-none-any.whl": 'data-yanked=""'})
    assert between("vllm", "1.9", "2.0") == ["1.9", "1.10", "1.10.post1", "1.11", "2.0"]
    assert between("vllm", "1.11rc1", "1.13.0") == ["1.11rc1", "1.11", "1.13"], "an end is taken as it is named"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1.0", "3.0", "vllm has no wheel of version 3.0; its newest are 1.0, 2.0"),
        ("x", "2.0", "no wheel of version x"),
        ("2.0", "1.0", "must be in order"),
        ("1.0", "1", "must be in order"),
    ],
)
def test_ends_that_are_no_versions(index: Index, old: str, new: str, words: str) -> None:
    index.offer({f"vllm-{name}-py3-none-any.whl": b"" for name in ("1.0", "2.0")})
    with pytest.raises(UsageError, match=words):
        between("vllm", old, new)


def test_no_such_distribution(index: Index) -> None:
    with pytest.raises(UsageError, match="no wheel of vlm on http://127.0.0.1"):
        between("vlm", "1", "2")


def test_no_index_answers(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("remotezip")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(InfrastructureError, match="cannot look up the versions of vllm"):
        between("vllm", "1", "2")


def test_without_a_library_that_orders_versions(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucheck.tools.bisect.sources.package_versions.LIBRARIES", ("no_such", "json"))
    with pytest.raises(InfrastructureError, match="pip install packaging"):
        between("vllm", "1", "2")
    monkeypatch.setattr("gpucheck.tools.bisect.sources.package_versions.LIBRARIES", ("pip._vendor.packaging",))
    index.offer({f"vllm-{name}-py3-none-any.whl": b"" for name in ("1.0", "2.0")})
    assert between("vllm", "1.0", "2.0") == ["1.0", "2.0"]
