"""``--engine``: its words, where an engine is found, what is taken out of a wheel and what it needs beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library.engines import engine_packages
from gpucheck.library.engines.engine_copy import installed_engines
from gpucheck.library.engines.engine_fetch import fetch_engine
from gpucheck.library.engines.engine_option import (
    found_again,
    named_engines,
    parse_engines,
    resolve_engines,
    served_with,
)
from gpucheck.library.library_option import parse_source
from gpucheck.model.errors import InfrastructureError, UsageError

pytest.importorskip("remotezip")

NEEDED = "vllm/model_executor/models/gpt_oss.py"
WHEEL = "vllm-0.9.9-cp38-abi3-manylinux_2_28_x86_64.whl"
METADATA = """\
Metadata-Version: 2.1
Name: vllm
Version: 0.9.9
Requires-Dist: torch==9.9.9
Requires-Dist: transformers<6,>=5
Requires-Dist: fastapi[standard]>=0.100
Requires-Dist: einops; extra == "audio"
Requires-Dist: gguf>=0.17

Requires-Dist: loguru==0.0.1 is a line of the description
"""


def wheel(*, altered: str = "") -> bytes:
    members = {
        "vllm/__init__.py": b"",
        NEEDED: b"class MLPBlock: ...",
        "vllm/config.json": b"{}",
        "vllm/third_party/deep/big.h": b"int x;",
        "vllm/_C.abi3.so": b"\x7fELF" * 1000,
        "../outside.py": b"",
        "vllm-0.9.9.dist-info/METADATA": METADATA.encode(),
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in members.items()
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data + b"#" if name == altered else data)
        archive.writestr("vllm-0.9.9.dist-info/RECORD", "\n".join([*rows, "vllm-0.9.9.dist-info/RECORD,,"]))
    return buffer.getvalue()


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The calls of pip, which finds that one package is missing and puts a file in its folder."""
    calls: list[tuple[str, ...]] = []

    def run(name: str, *arguments: str) -> None:
        calls.append(arguments)
        if "--report" in arguments:
            report = {"install": [{"metadata": {"name": "einops", "version": "1.2"}}]}
            Path(arguments[arguments.index("--report") + 1]).write_text(json.dumps(report))
        else:
            Path(arguments[arguments.index("--target") + 1], "einops.py").write_text("")

    monkeypatch.setattr(engine_packages, "_pip", run)
    return calls


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vllm", "not understood"),
        ("vllm=0.33.0", "not understood"),
        ("path:", "not understood"),
        ("", "not understood"),
        ("pip==23.0", "no engine is called so"),
        ("none:x", "not understood"),
    ],
)
def test_other_words_are_usage_errors_that_show_the_forms(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_engines([text])
    assert "vllm" in str(caught.value)


def test_none_stands_alone_and_an_engine_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="goes with no other"):
        parse_engines(["none", "vllm==1.0"])
    assert resolve_engines(parse_engines(["none"])) == [] and named_engines(parse_engines(["none"])) == set()


def test_an_installed_engine_is_found_by_its_files_and_never_imported(site: Path) -> None:
    assert installed_engines() == [] == resolve_engines([])
    with pytest.raises(InfrastructureError, match="no engine is installed"):
        resolve_engines(parse_engines(["installed"]))
    package = site / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('nothing imports it')")
    assert installed_engines() == [], "a release without the file that is called"
    (site / NEEDED).parent.mkdir(parents=True)
    (site / NEEDED).touch()
    (found,) = resolve_engines([])
    assert (found.name, found.root, found.installed, found.packages) == ("vllm", site, True, None)
    assert named_engines([]) == {"vllm"}


def test_only_text_files_are_taken_checked_cached_and_said(
    index: Any, tmp_path: Path, pip: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    index.offer({WHEEL: wheel()})
    copy = fetch_engine("vllm", "0.9.9")
    assert (copy.words, copy.origin, copy.installed) == ("vllm 0.9.9", WHEEL, False)
    assert copy.root == tmp_path / "cache/engines/vllm-0.9.9"
    files = {path.relative_to(copy.root).as_posix() for path in copy.root.rglob("*") if path.is_file()}
    of_wheel = {"vllm-0.9.9.dist-info/METADATA", "vllm-0.9.9.dist-info/RECORD"}
    assert files == {"vllm/__init__.py", NEEDED, "vllm/config.json", "origin.json", *of_wheel}
    said = capsys.readouterr().err
    assert "vllm 0.9.9: 5 files" in said and "1 packages for vllm" in said

    asked, called = len(index.requests), len(pip)
    assert fetch_engine("vllm", "0.9.9") == copy
    assert (len(index.requests), len(pip), capsys.readouterr().err) == (asked, called, "")


def test_without_the_release_or_an_index_the_other_way_is_named(index: Any) -> None:
    index.offer({WHEEL: wheel()})
    with pytest.raises(UsageError, match="has no wheel of version 9.9") as caught:
        fetch_engine("vllm", "9.9")
    assert "--engine path:DIR" in str(caught.value) and "--library" not in str(caught.value)


def test_a_file_that_does_not_match_record_is_never_used(index: Any, tmp_path: Path, pip: list[Any]) -> None:
    index.offer({WHEEL: wheel(altered=NEEDED)})
    with pytest.raises(InfrastructureError, match="does not match the wheel's RECORD"):
        fetch_engine("vllm", "0.9.9")
    assert all(path.name.startswith(".lock") for path in (tmp_path / "cache/engines").iterdir())


@pytest.mark.parametrize("damage", ["changed", "missing", "unrecorded"])
def test_a_damaged_copy_is_said_and_fetched_again(
    index: Any, pip: list[Any], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    index.offer({WHEEL: wheel()})
    root = fetch_engine("vllm", "0.9.9").root
    if damage == "changed":
        (root / NEEDED).write_text("other")
    elif damage == "missing":
        (root / NEEDED).unlink()
    else:
        (root / "vllm-0.9.9.dist-info/RECORD").write_text("")
    capsys.readouterr()
    assert (fetch_engine("vllm", "0.9.9").root / NEEDED).read_text() == "class MLPBlock: ..."
    assert "is damaged" in capsys.readouterr().err


def test_a_release_without_what_is_called_is_a_usage_error(index: Any, make_wheel: Any) -> None:
    index.offer({"vllm-1.0-py3-none-any.whl": make_wheel()})
    with pytest.raises(UsageError, match=NEEDED):
        fetch_engine("vllm", "1.0")


def test_packages_are_asked_for_by_the_engines_own_limits_and_never_those_under_test(
    index: Any, pip: list[tuple[str, ...]]
) -> None:
    index.offer({WHEEL: wheel()})
    copy = fetch_engine("vllm", "0.9.9")
    asked = engine_packages.requirements("vllm", copy.root)
    assert {"transformers<6,>=5", "fastapi>=0.100", "einops", "loguru"} <= set(asked), "extras are not for this"
    assert "gguf>=0.17" in asked and not any("gguf" in line for line in engine_packages.requirements("vllm", Path("x")))
    assert not any(line.startswith(("torch", "triton", "nvidia")) for line in asked)
    resolving, filling = pip
    assert "--dry-run" in resolving and "--constraint" in resolving
    assert "--no-deps" in filling and "--target" in filling and copy.packages and (copy.packages / "einops.py").exists()
    assert copy.packages.parent == copy.root.parent, "in the cache, not in the environment"


def test_packages_that_cannot_be_had_say_what_to_do(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    index.offer({WHEEL: wheel()})
    monkeypatch.setattr(engine_packages.sys, "executable", "/nonexistent/python")
    with pytest.raises(InfrastructureError, match="cannot be had") as caught:
        fetch_engine("vllm", "0.9.9")
    assert all(word in str(caught.value) for word in ("pip", "expected", "do"))


def test_a_folder_is_its_package_a_checkout_or_what_holds_it(tmp_path: Path, pip: list[Any], index: Any) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        resolve_engines(parse_engines([f"path:{tmp_path / 'nowhere'}"]))
    with pytest.raises(UsageError, match="no engine there"):
        resolve_engines(parse_engines([f"path:{tmp_path}"]))
    (tmp_path / NEEDED).parent.mkdir(parents=True)
    (tmp_path / NEEDED).touch()
    for place in (tmp_path, tmp_path / "vllm"):
        sources = parse_engines([f"path:{place}"])
        (found,) = resolve_engines(sources)
        assert (found.name, found.version, found.root) == ("vllm", "unknown", tmp_path)
        assert named_engines(sources) == {"vllm"}
    assert found.packages != tmp_path / "packages" and pip
    (tmp_path / "packages").mkdir()
    assert resolve_engines(sources)[0].packages == tmp_path / "packages", "what was carried along is taken as it is"
    with pytest.raises(UsageError, match="more than once"):
        resolve_engines(parse_engines([f"path:{tmp_path}", f"path:{tmp_path / 'vllm'}"]))


def test_a_fetched_engine_comes_with_the_library_that_it_is_served_with(
    tmp_path: Path, pip: list[Any], index: Any
) -> None:
    (tmp_path / NEEDED).parent.mkdir(parents=True)
    (tmp_path / NEEDED).touch()
    engines = resolve_engines(parse_engines([f"path:{tmp_path}"]))
    assert served_with(parse_source(None), engines) == (parse_source(None), "")
    (tmp_path / "vllm/third_party/triton_kernels").mkdir(parents=True)
    source, release = served_with(parse_source(None), engines)
    assert (str(source), release) == (f"path:{tmp_path / 'vllm/third_party'}", "vllm unknown")
    named = parse_source("wheel:vllm==0.33.0")
    assert served_with(named, engines) == (named, ""), "what is named"


def test_a_replay_finds_the_engine_of_the_run_or_says_what_is_gone(
    index: Any, site: Path, tmp_path: Path, pip: list[Any]
) -> None:
    index.offer({WHEEL: wheel()})
    fetched = fetch_engine("vllm", "0.9.9").planned()
    assert found_again(fetched) == fetched
    (tmp_path / NEEDED).parent.mkdir(parents=True)
    (tmp_path / NEEDED).touch()
    (from_folder,) = resolve_engines(parse_engines([f"path:{tmp_path}"]))
    assert found_again(from_folder.planned()) == from_folder.planned()
    (tmp_path / NEEDED).unlink()
    with pytest.raises(InfrastructureError, match="no longer there"):
        found_again(from_folder.planned())
    with pytest.raises(InfrastructureError, match="none is installed here"):
        found_again({**fetched, "installed": True})
