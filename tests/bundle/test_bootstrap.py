"""Unpacking an archive: once, in one step, where nobody else can write; and starting what is in it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.module_files import load_module

SOURCE = Path(__file__).parents[2] / ".ci/bundle/bootstrap.py"
COMMAND = """\
import json, os, sys
def main():
    print(json.dumps([sys.argv[1:], sys.path[:2], os.path.dirname(__file__)]))
"""


@pytest.fixture
def bootstrap() -> ModuleType:
    return load_module(SOURCE)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small archive with a command that says how it was started."""
    path = tmp_path / "gpucheck.pyz"
    with zipfile.ZipFile(path, "w") as content:
        content.write(SOURCE, "__main__.py")
        content.writestr("DIGEST", "0123456789abcdef" * 4)
        for name in ("app/gpucheck/__init__.py", "vendor/extra.py"):
            content.writestr(name, "")
        content.writestr("app/gpucheck/__main__.py", COMMAND)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUCHECK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "cache"


def start(archive: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-I", str(archive), *arguments], capture_output=True, text=True)


def test_the_command_runs_from_the_unpacked_folder(archive: Path, cache: Path) -> None:
    import json

    for _ in range(2):
        done = start(archive, "run", "--x y")
        assert done.returncode == 0, done.stderr
        arguments, path, folder = json.loads(done.stdout)
        unpacked = cache / "pyz" / "0123456789abcdef"
        assert arguments == ["run", "--x y"]
        assert path == [str(unpacked / "app"), str(unpacked / "vendor")]
        assert folder == str(unpacked / "app/gpucheck")
    assert [entry.name for entry in (cache / "pyz").iterdir()] == ["0123456789abcdef"]


def test_a_damaged_folder_is_made_anew(bootstrap: ModuleType, archive: Path, cache: Path) -> None:
    folder = Path(bootstrap.unpacked(str(archive)))
    (folder / "app/gpucheck/__main__.py").unlink()
    (folder / "vendor/extra.py").write_text("more than there was")
    assert Path(bootstrap.unpacked(str(archive))) == folder
    assert (folder / "app/gpucheck/__main__.py").read_text() == COMMAND and (
        folder / "vendor/extra.py"
    ).read_text() == ""
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_a_whole_folder_is_left_alone(bootstrap: ModuleType, archive: Path, cache: Path) -> None:
    folder = Path(bootstrap.unpacked(str(archive)))
    before = (folder / "vendor/extra.py").stat()
    bootstrap.unpacked(str(archive))
    assert (folder / "vendor/extra.py").stat() == before


def test_several_processes_at_once(archive: Path, cache: Path) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(start(archive).returncode)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 6
    assert [entry.name for entry in (cache / "pyz").iterdir()] == ["0123456789abcdef"]


def test_the_loser_of_a_race_takes_what_the_winner_made(
    bootstrap: ModuleType, archive: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def late(old: str, new: str) -> None:
        monkeypatch.setattr(os, "rename", rename)
        bootstrap.unpacked(str(archive))
        rename(old, new)

    monkeypatch.setattr(os, "rename", late)
    assert bootstrap.unpacked(str(archive)) == str(cache / "pyz" / "0123456789abcdef")


def test_a_cache_that_cannot_be_used_gives_way_to_temporary_files(
    bootstrap: ModuleType, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GPUCHECK_CACHE_DIR", str(archive))  # a file
    temporary = tmp_path / f"gpucheck-pyz-{os.getuid()}"
    assert Path(bootstrap.unpacked(str(archive))).parent == temporary
    assert temporary.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("how", ["writable", "link"])
def test_a_folder_that_others_can_fill_is_not_used(
    bootstrap: ModuleType, archive: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache.mkdir()
    (tmp_path / "theirs").mkdir(mode=0o700)
    if how == "link":
        (cache / "pyz").symlink_to(tmp_path / "theirs")
    else:
        (cache / "pyz").mkdir()
        (cache / "pyz").chmod(0o777)
    assert Path(bootstrap.unpacked(str(archive))).parent == tmp_path / f"gpucheck-pyz-{os.getuid()}"


def test_nowhere_to_unpack_is_a_message(bootstrap: ModuleType, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(archive))
    monkeypatch.setenv("GPUCHECK_CACHE_DIR", str(archive))
    with pytest.raises(SystemExit) as ended:
        bootstrap.unpacked(str(archive))
    assert ended.value.code == 3


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({"GPUCHECK_CACHE_DIR": "/a"}, "/a/pyz"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/gpucheck/pyz"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/c"}, "/c/.cache/gpucheck/pyz"),
    ],
)
def test_places_follow_the_environment(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], first: str
) -> None:
    for name in ("GPUCHECK_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert bootstrap.places()[0] == first


def test_a_user_without_a_home(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GPUCHECK_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert len(bootstrap.places()) == 1 and os.path.isabs(bootstrap.places()[0])


def test_a_python_that_is_too_old_is_told_so(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    with pytest.raises(SystemExit) as ended:
        bootstrap.main()
    assert ended.value.code == 3 and "found Python 3.8, expected 3.10 or later" in capsys.readouterr().err


def test_it_holds_nothing_that_old_pythons_cannot_parse() -> None:
    import ast

    ast.parse(SOURCE.read_text(), feature_version=(3, 6))
    assert "from __future__" not in SOURCE.read_text() and ":=" not in SOURCE.read_text()
