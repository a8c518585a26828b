from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library.copies import describe
from gpucheck.library.library_option import parse_source
from gpucheck.library.recorded import find_recorded
from gpucheck.model.errors import InfrastructureError, UsageError
from tests.library.conftest import library_files, write_files


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_files(tmp_path / "lib" / "triton_kernels", library_files("v3.7"))


def recorded(package: Path, origin: str = "path") -> dict[str, Any]:
    copy = describe(package, origin)
    facts = {"root": str(copy.root), "package": str(copy.package), "origin": origin, "content": copy.content}
    return {**facts, "name": copy.name, "generation": copy.generation, "patches": []}


def test_where_it_was(package: Path, tmp_path: Path) -> None:
    found = find_recorded(recorded(package), tmp_path / "run")
    assert (found.package, found.origin) == (package, "path")


def test_a_patched_copy_moves_with_the_run_folder(package: Path, tmp_path: Path) -> None:
    library = recorded(package)
    shutil.move(package.parent, tmp_path / "moved" / "library")
    assert find_recorded(library, tmp_path / "moved").package == tmp_path / "moved" / "library" / "triton_kernels"


def test_another_content_is_told_with_what_was_found(package: Path, tmp_path: Path) -> None:
    library = recorded(package)
    (package / "numerics.py").write_text("changed\n")
    now = describe(package, "path").content
    with pytest.raises(InfrastructureError) as error:
        find_recorded(library, tmp_path / "run")
    assert library["content"][:12] in str(error.value) and f"{package}: its content is {now[:12]}" in str(error.value)
    assert "--library path:DIR" in str(error.value)


def test_a_folder_that_is_gone(package: Path, tmp_path: Path) -> None:
    library = recorded(package)
    shutil.rmtree(package)
    with pytest.raises(InfrastructureError, match="no such folder"):
        find_recorded(library, tmp_path / "run")


def test_a_release_is_fetched_again(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = recorded(package, "vllm 0.33.0")
    moved = Path(shutil.move(package.parent, tmp_path / "cache")) / "triton_kernels"
    asked: list[tuple[str, str]] = []

    def fetch(name: str, version: str) -> Any:
        asked.append((name, version))
        return describe(moved, f"{name} {version}")

    monkeypatch.setattr("gpucheck.library.fetch.fetch", fetch)
    assert find_recorded(library, tmp_path / "run").package == moved and asked == [("vllm", "0.33.0")]
    library["patches"] = ["guard.diff"]
    with pytest.raises(InfrastructureError):
        find_recorded(library, tmp_path / "run")
    assert len(asked) == 1, "a release is not its patched copy"


def test_a_copy_that_is_named_must_be_the_very_same(package: Path, tmp_path: Path) -> None:
    library = recorded(package)
    other = shutil.copytree(package, tmp_path / "other" / "triton_kernels")
    source = parse_source(f"path:{other}")
    assert find_recorded(library, tmp_path / "run", source).package == other
    (other / "numerics.py").write_text("changed\n")
    with pytest.raises(UsageError, match="a replay needs the same content"):
        find_recorded(library, tmp_path / "run", source)
