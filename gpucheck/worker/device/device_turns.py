"""How processes of one rank share its GPU: many use it at once, or one has it for itself while it measures time.

The kernel releases the locks of a process that dies. One that hangs keeps its own: after a while others go on without,
and measure nothing.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO

LONGEST = 5.0  # s that one waits for others
POLL = 0.0005  # s


class DeviceTurns:
    """The turns of one process. It may be used by one thread at a time."""

    def __init__(self, name: str) -> None:
        """``name`` begins the names of two files, the same for all processes on the GPU; "": there are no others."""
        self._files: tuple[IO[str], IO[str]] | None = None
        if name:
            self._files = (open(f"{name}.door", "a"), open(f"{name}.room", "a"))  # noqa: SIM115 - held for life

    def shared(self) -> AbstractContextManager[bool]:
        """Inside, no other process measures time."""
        return self._turn(fcntl.LOCK_SH) if self._files else nullcontext(True)

    def alone(self) -> AbstractContextManager[bool]:
        """Inside, no other process uses the GPU; yields False where one did not leave it."""
        return self._turn(fcntl.LOCK_EX) if self._files else nullcontext(True)

    @contextmanager
    def _turn(self, mode: int) -> Iterator[bool]:
        """Goes through the door, where whoever waits for an empty room keeps others out, and into the room."""
        assert self._files is not None
        door, room = self._files
        got = _lock(door, fcntl.LOCK_EX) and _lock(room, mode)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield got
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)


def _lock(file: IO[str], mode: int) -> bool:
    deadline = time.monotonic() + LONGEST
    while True:
        try:
            fcntl.flock(file, mode | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
