"""What torchrun sees of a rank: a small process that outlives its supervisor.

torchrun ends all ranks when one of its processes fails. This one does not fail, so the others finish their cases; what
the dead rank has not recorded is missing from its records, and missing records are never a pass. Where a candidate can
write these records once nobody watches over them, the death of who does is a failure, and the run did not end well.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gpucheck.host.containment import UNWALLED, hide_memory
from gpucheck.host.oom_killer import OomKills
from gpucheck.host.processes import die_with_parent, ending, parent_of
from gpucheck.model.record import OOM_KILLER

STOPPED = 10.0  # s that a supervisor which was stopped has to go on before it is ended
POLL = 0.1  # s


def outlive(main: Callable[[], None], died: Callable[[str], None] = lambda how: None) -> None:
    """Runs ``main`` in a forked process, waits for it and says on stderr how it died, if it did.

    Args:
        died: told how it died, in words.
    """
    hide_memory()  # and with it that of all that is forked from here; who runs code under test shows its own again
    die_with_parent(os.getppid())
    if _orphaned():
        os._exit(1)
    kills = OomKills()
    before, rank = kills.count(), os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with_parent(rank)
        main()
        return
    how = _end_of(pid)
    if how and kills.count() > before:
        how += f", while the {OOM_KILLER} was at work in {kills.where}"
    if how:
        print(f"the supervisor of rank {os.environ.get('RANK')} {how}; its further cases are lost", file=sys.stderr)
        died(how)
        if os.environ.get(UNWALLED):
            os._exit(1)


def _end_of(pid: int) -> str:
    """How a process ended, in words; "" where it ended well. One that is stopped must go on soon."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    while os.WIFSTOPPED(status):
        stopped = signal.Signals(os.WSTOPSIG(status)).name
        deadline = time.monotonic() + STOPPED
        done, status = 0, 0
        while not done and time.monotonic() < deadline:
            time.sleep(POLL)
            done, status = os.waitpid(pid, os.WNOHANG | os.WCONTINUED)
        if not done:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"was stopped by {stopped}, did not go on within {STOPPED:g} s and was killed"
        if os.WIFCONTINUED(status):
            _, status = os.waitpid(pid, os.WUNTRACED)
    code = os.waitstatus_to_exitcode(status)
    return ending(code) if code else ""


def _orphaned() -> bool:
    """Whether the command that started torchrun has ended before this process could ask to end with its parent."""
    launcher, pid = int(os.environ.get("GPUCHECK_LAUNCHER", "0")), os.getppid()
    while launcher and pid > 1 and pid != launcher:
        pid = parent_of(Path("/proc", str(pid)))
    return pid != launcher if launcher else False
