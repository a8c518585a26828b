"""What the ranks of a node know of each other, through files in the folder they share.

Locks belong to open files: the kernel releases those of a process that dies, so nobody waits for the dead.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

POLL = 0.01  # s


class Node:
    """One rank's place among the ranks of its node."""

    def __init__(self, folder: Path, local_rank: int, local_ranks: int) -> None:
        self.folder, self.local_rank, self.local_ranks = folder, local_rank, local_ranks
        folder.mkdir(parents=True, exist_ok=True)
        unseen = folder / f".rank{local_rank}.{os.getpid()}"  # until it is locked
        self._presence = open(unseen, "w")  # noqa: SIM115 - held for life
        fcntl.flock(self._presence, fcntl.LOCK_EX)
        unseen.rename(self._presence_file(local_rank))
        self._floor = open(folder / "floor.lock", "w")  # noqa: SIM115 - held for life
        fcntl.flock(self._floor, fcntl.LOCK_SH)

    def gone(self, local_rank: int) -> bool:
        """Whether a rank was here and is no more."""
        try:
            with open(self._presence_file(local_rank), "r+") as presence:
                fcntl.flock(presence, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            return False
        return True

    def barrier(self, name: str, seconds: float) -> bool:
        """Waits until every rank of the node that still runs has come here; False after ``seconds``."""
        (self.folder / f"{name}.here{self.local_rank}").touch()

        def all_came() -> bool:
            return all(
                (self.folder / f"{name}.here{rank}").exists() or self.gone(rank) for rank in range(self.local_ranks)
            )

        return _wait(all_came, seconds)

    def vote(self, name: str, wish: bool) -> bool:
        """Gives all ranks one answer: the wish of the rank that votes first."""
        decision, mine = self.folder / f"{name}.decision", self.folder / f"{name}.wish{self.local_rank}"
        mine.write_text("yes" if wish else "no")
        with suppress(FileExistsError):
            decision.hardlink_to(mine)
        mine.unlink()
        return decision.read_text() == "yes"

    def post(self, word: str) -> None:
        """Posts a word that other ranks can ask for with :meth:`posted`."""
        (self.folder / f"{word}.posted{self.local_rank}").touch()

    def posted(self, word: str, local_rank: int) -> bool:
        """Whether a rank of the node has posted a word."""
        return (self.folder / f"{word}.posted{local_rank}").exists()

    def all_posted(self, word: str) -> bool:
        """Whether every rank of the node has posted a word."""
        return all(self.posted(word, rank) for rank in range(self.local_ranks))

    def claim(self, task: str) -> bool:
        """Whether this rank is the first of the node to take a task on, which is then its own."""
        try:
            (self.folder / f"{task}.claimed").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def publish(self, name: str, local_rank: int, content: Any) -> None:
        """Leaves something for another rank."""
        path = self.folder / f"{name}.for{local_rank}"
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(pickle.dumps(content))
        partial.rename(path)

    def collect(self, name: str, sender: int) -> Any:
        """Takes what ``sender`` left for this rank, waiting for it; None where the sender is gone without."""
        path = self.folder / f"{name}.for{self.local_rank}"
        while not path.exists():
            if self.gone(sender) and not path.exists():
                return None
            time.sleep(POLL)
        content = pickle.loads(path.read_bytes())
        path.unlink()
        return content

    @contextmanager
    def alone(self, seconds: float) -> Iterator[bool]:
        """Waits until no other rank runs anything, at most for a time; yields whether that came to be.

        A rank that waits here runs nothing itself, and goes on when nobody is alone any more.
        """
        got = _wait(lambda: _try_lock(self._floor), seconds)
        try:
            yield got
        finally:
            fcntl.flock(self._floor, fcntl.LOCK_SH)

    def leave(self) -> None:
        """Leaves: this rank runs nothing from here on, so no rank that wants to be alone waits for it."""
        fcntl.flock(self._floor, fcntl.LOCK_UN)

    def _presence_file(self, local_rank: int) -> Path:
        return self.folder / f"rank{local_rank}.lock"


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True
