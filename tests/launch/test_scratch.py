"""Folders in shared memory: what a killed command left is removed, what anybody still holds is not."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.launch import scratch as module
from gpucheck.launch.scratch import LOCK, PREFIX, scratch

NO_PROCESS = 1 << 30  # no process here has this id; one of another container may have any

HOLD = """
import sys
from pathlib import Path
from gpucheck.launch import scratch as module
module.MEMORY, module.ROOM = Path(sys.argv[1]), 0
with module.scratch(Path(sys.argv[1])) as folder:
    (folder / "inputs").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for /dev/shm."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(module, "MEMORY", folder)
    monkeypatch.setattr(module, "ROOM", 0)
    return folder


def holder(memory: Path) -> tuple[subprocess.Popen[str], Path]:
    """A command that works in a folder of its own, which is renamed as if another container had made it."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(memory)], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    return process, folder.rename(folder.with_name(f"{PREFIX}{NO_PROCESS}-x"))


def test_a_folder_of_another_container_is_kept_though_its_process_cannot_be_seen(memory: Path, tmp_path: Path) -> None:
    process, folder = holder(memory)
    with scratch(tmp_path) as own:
        assert own.parent == memory and own != folder
        assert (folder / "inputs").exists()
    process.kill()
    process.wait()


def test_the_folder_of_a_killed_command_is_removed_though_its_number_may_be_in_use(
    memory: Path, tmp_path: Path
) -> None:
    process, folder = holder(memory)
    reused = folder.rename(folder.with_name(f"{PREFIX}{os.getpid()}-x"))
    process.kill()
    process.wait()
    with scratch(tmp_path):
        assert not reused.exists()


def test_folders_without_an_owner_that_can_be_known_are_kept(memory: Path, tmp_path: Path) -> None:
    young, odd = memory / f"{PREFIX}{NO_PROCESS}-y", memory / f"{PREFIX}word"
    young.mkdir()
    odd.mkdir()
    with scratch(tmp_path):
        assert young.exists() and odd.exists()


def test_a_lock_that_is_a_link_is_not_followed(memory: Path, tmp_path: Path) -> None:
    folder = memory / f"{PREFIX}{NO_PROCESS}-z"
    folder.mkdir()
    (tmp_path / "other").touch()
    (folder / LOCK).symlink_to(tmp_path / "other")
    with scratch(tmp_path):
        assert folder.exists()


def test_a_folder_is_locked_while_it_is_used_and_gone_afterwards(memory: Path, tmp_path: Path) -> None:
    with scratch(tmp_path) as folder:
        assert folder.name.startswith(f"{PREFIX}{os.getpid()}-") and [path.name for path in folder.iterdir()] == [LOCK]
        with open(folder / LOCK) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with scratch(tmp_path) as second:
            assert folder.exists() and second != folder
    assert list(memory.iterdir()) == []


def test_scratch_moves_to_the_run_folder_where_memory_is_short(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOM", 1 << 60)
    with scratch(tmp_path) as folder:
        assert folder.parent == tmp_path and folder.name.startswith("scratch-")
    assert not folder.exists()
    monkeypatch.setattr(module, "MEMORY", tmp_path / "gone")
    with scratch(tmp_path) as folder:
        assert folder.parent == tmp_path
