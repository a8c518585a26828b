"""Processes that tests have started, and those that these started in turn."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gpucheck.host.processes import state_of


def alive(pid: int | str) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    return state_of(int(pid)) not in ("Z", "gone")


def naming(folder: Path) -> list[int]:
    """Processes other than this one whose command line or environment names a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or is another user's
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if os.fsencode(folder) in words and entry.name != str(os.getpid()):
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], object]) -> None:
    """Returns when something holds; the time limit of a test ends the wait, however busy the machine."""
    while not condition():
        time.sleep(0.02)
