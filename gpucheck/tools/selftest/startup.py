"""What the processes of a planted run do before anything else; called from the ``sitecustomize`` of that run.

Standard library only: it runs in every Python process that the run starts, and does something in a rank's only.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WORKER = "gpucheck.worker"
LINES = 6  # that a rank can write before its disk is full


def plant(faults: Mapping[str, str], modules: Mapping[str, Mapping[str, str]]) -> None:
    """Plants in the processes that this one forks, if it is a rank or what ranks are forked from.

    Args:
        faults: rank -> name of a function of this module.
        modules: name of a module -> rank -> the file to load it from on that rank.
    """
    if WORKER not in getattr(sys, "orig_argv", []):
        return
    if modules:
        sys.meta_path.insert(0, Finder(modules))
    if faults:
        os.register_at_fork(after_in_child=lambda: _begin(faults))


def _begin(faults: Mapping[str, str]) -> None:
    """In a process that was forked: the first one of a rank is the one that finds its rank in its environment."""
    name = faults.get(os.environ.get("RANK", ""))
    if name:
        globals()[name]()


class Finder:
    """Finds the private copies of modules; the rank is asked for when a module is loaded."""

    def __init__(self, modules: Mapping[str, Mapping[str, str]]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The private copy of a module on this rank; None leaves the module to others."""
        file = self.modules.get(name, {}).get(os.environ.get("RANK", ""))
        return importlib.util.spec_from_file_location(name, file) if file else None


def never_starts() -> None:
    """The process that the rank forks first, its supervisor, is gone before it has done anything."""
    os._exit(9)


def loses_its_folder() -> None:
    """Writing records fails after a few lines, as on a disk that is full."""
    write, written = os.write, [0]
    if write.__name__ == "limited":  # the process that this one was forked from has it already
        return

    def limited(fd: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".jsonl"):
            written[0] += 1
            if written[0] > LINES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    os.write = limited
