"""The folder that the ranks of a node share while they work: in memory where there is room.

Containers may share /dev/shm without seeing each other's processes, so a process id says nothing of whether a folder is
still in use. A lock does: the kernel lets go of it when its owner ends, however that ends, and shows it to everybody
who sees the file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
PREFIX = "gpucheck-"
LOCK = "owner.lock"  # held by the command that made the folder
FIRST_RANK = "first-rank"  # file in it: the rank that torchrun has made local rank 0 of this node
ROOM = 4 << 30  # bytes that must be free in memory for inputs and references to live there


def first_rank(folder: Path, usual: int) -> int:
    """The first rank of this node: torchrun orders nodes by their names, whatever ``--node-rank`` says.

    Args:
        usual: what it is where no rank has said it.
    """
    with suppress(OSError, ValueError):
        return int((folder / FIRST_RANK).read_text())
    return usual


@contextmanager
def scratch(run: Path) -> Iterator[Path]:
    """A folder for one run on this node, removed at the end.

    Folders that killed commands left in memory are removed first; they hold gigabytes.

    Args:
        run: the run folder, which holds the folder where memory cannot.
    """
    usable = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    if usable:
        _sweep()
    lock, folder = _in_memory() if usable and _roomy() else (None, Path(tempfile.mkdtemp(prefix="scratch-", dir=run)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _roomy() -> bool:
    space = os.statvfs(MEMORY)
    return space.f_bavail * space.f_frsize >= ROOM


def _in_memory() -> tuple[int, Path]:
    """A new folder and the lock on it, which stands before others can find it."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY))
    lock = os.open(folder / f"new-{LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(folder / f"new-{LOCK}", folder / LOCK)
    return lock, folder


def _sweep() -> None:
    """Removes the folders of this user whose owners have ended; one without a lock may be about to get it."""
    for folder in MEMORY.glob(f"{PREFIX}*-*"):
        with suppress(OSError):  # removed meanwhile, or somebody else's
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
