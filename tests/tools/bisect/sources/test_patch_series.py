from __future__ import annotations

from pathlib import Path

import pytest

from gpucheck.library.copies import PACKAGE
from gpucheck.tools.bisect.sources import Commits, Packages, Patches, own_library
from gpucheck.tools.bisect.sources.base import Unbuildable, cached_folder

EDIT = "--- a/{name}.py\n+++ b/{name}.py\n@@ -1 +1 @@\n-raise RuntimeError('imported')\n+{text}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "02-second.diff").write_text(EDIT.format(name="tensor", text="second"))
    (folder / "01-first.patch").write_text(EDIT.format(name="testing", text="first"))
    (folder / "03-same.patch").write_text(EDIT.format(name="testing", text="first"))
    (folder / "README").write_text("no patch")
    return folder


def test_the_series_is_the_files_by_name(folder: Path, library: Path) -> None:
    source = Patches.in_folder(folder, library)
    assert [Path(file).name for file in source.files] == ["01-first.patch", "02-second.diff", "03-same.patch"]


def test_a_part_is_applied_to_a_copy(folder: Path, library: Path, tmp_path: Path) -> None:
    source = Patches.in_folder(folder, library)
    both = source.candidate((0, 1))
    assert both.name == "01-first.patch, 02-second.diff"
    with source.prepared(both, tmp_path / "work") as prepared:
        assert (prepared.library / PACKAGE / "tensor.py").read_text() == "second\n"
        assert (prepared.library / PACKAGE / "testing.py").read_text() == "first\n"
    assert "imported" in (library / PACKAGE / "tensor.py").read_text()
    with source.prepared(source.candidate(()), tmp_path / "work") as prepared:
        assert "imported" in (prepared.library / PACKAGE / "tensor.py").read_text()


def test_parts_that_make_the_same_are_equal(folder: Path, library: Path) -> None:
    source = Patches.in_folder(folder, library)
    assert source.candidate((0,)).key == source.candidate((2,)).key != source.candidate((1,)).key


def test_a_part_that_does_not_apply(folder: Path, library: Path, tmp_path: Path) -> None:
    source = Patches.in_folder(folder, library)
    clash = source.candidate((0, 2))
    assert "03-same.patch does not apply: testing.py does not" in clash.lacks
    with pytest.raises(Unbuildable, match="does not apply"), source.prepared(clash, tmp_path):
        pass


def test_the_library_of_a_search_is_a_copy_of_its_own(folder: Path, library: Path, tmp_path: Path) -> None:
    source = own_library(Patches.in_folder(folder, library), tmp_path / "work")
    assert isinstance(source, Patches)
    (library / PACKAGE / "tensor.py").write_text("edited meanwhile")
    assert not source.candidate((1,)).lacks
    commits = Commits("/r", "", "a", "b")
    assert own_library(commits, tmp_path) is commits
    without = Packages("triton", "1", "2", "")
    assert own_library(without, tmp_path) is without, "a run that needs no library has none"


def test_a_copy_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    def breaks_off(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder(tmp_path, "key", breaks_off)
    assert list((tmp_path / "libraries").iterdir()) == []
    folder = cached_folder(tmp_path, "key", lambda folder: (folder / "whole").write_text(""))
    assert cached_folder(tmp_path, "key", breaks_off) == folder and (folder / "whole").exists()
