"""Every process that comes from a command, however far off: none may outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 2.0  # s for killed processes to end
_POLL = 0.01  # s


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends.

    Args:
        parent: its id; where another process has become the parent already, this one ends here.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Family:
    """The descendants of this process that come into being from now on.

    Those whose parents end become children of this process and not of the system's first one, so that they are found.
    """

    def __init__(self) -> None:
        self._known = _children()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def end(self) -> list[int]:
        """Kills every descendant, generation by generation; returns those that did not end, stuck in the kernel."""
        deadline = time.monotonic() + _PATIENCE
        while (left := _children() - self._known) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(_POLL)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)
        return sorted(left)


def _children() -> set[int]:
    """The children of this process, those that have ended and were not waited for included."""
    found, this = set(), str(os.getpid())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[1] == this:
                    found.add(int(entry.name))
    return found
