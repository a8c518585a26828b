"""Processes that compute for a supervisor: threads of its own would wait for its interpreter lock and memory map."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import torch

from gpucheck import checks
from gpucheck.host.processes import die_with_parent, keep_freed_memory
from gpucheck.model.plan import Plan


def fork(plan: Plan, threads: int, work: Callable[[], None]) -> int:
    """Forks a process that works and ends, at the latest with this one; gives its id.

    Call it before torch has computed anything here or a thread was started: a fork has none of torch's threads.

    Args:
        threads: of torch in that process.
    """
    sys.stdout.flush()
    owner, pid = os.getpid(), os.fork()
    if not pid:
        with suppress(BaseException):
            die_with_parent(owner)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            keep_freed_memory()
            torch.set_num_threads(threads)
            with suppress(AttributeError):  # of torch before 2.6: nobody checks the sums of these files
                torch.serialization.set_crc32_options(False)
            checks.activate(plan.check_sources)
            work()
        os._exit(0)
    return pid


def kill(pids: list[int]) -> None:
    """Ends such processes, whatever they are at, and forgets them."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)  # one that has ended is still there, since nobody has waited for it
    for pid in pids:
        os.waitpid(pid, 0)
    pids.clear()
