"""The process that carries out evaluations on one device, one at a time; see ``evaluator.py``.

It has loaded what is slow to load and never touches CUDA. Each evaluation, and each proof of the device, is forked from
it as a fresh process with a session, a folder and limits of its own. It watches what comes of that and ends all of it,
also when the server dies: then its connection is closed.
"""

from __future__ import annotations

import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpucheck.host.bytecode import Bytecode
from gpucheck.host.containment import close_files, confine
from gpucheck.host.isolated import receive, send
from gpucheck.host.processes import Family, code_if_ended, descendants_of, die_with_parent, end_with, outlive_parent
from gpucheck.host.visible_gpus import VARIABLE
from gpucheck.library.cache_folder import cache_root
from gpucheck.tools.serve.evaluator import PRINTED
from gpucheck.tools.serve.resource_watch import ResourceWatch

POLL = 0.05  # s
GRACE = 10.0  # s that a run has to write its report after it was asked to end
ROUNDS = 50  # in which new processes of an evaluation are stopped
LOADED = (
    *("torch.distributed.run", "triton", "rich.console", "rich.progress"),
    *(
        "gpucheck.cli.run",
        "gpucheck.cli.present",
        "gpucheck.plan.bind",
        "gpucheck.plan.select",
        "gpucheck.worker.__main__",
    ),
    *("gpucheck.worker.supervisor.judge_pool", "gpucheck.worker.supervisor.judging", "gpucheck.worker.device.executor"),
    *("gpucheck.worker.device.single_calls", "gpucheck.checks.problem", "gpucheck.checks.candidate"),
    *("gpucheck.checks.torch_model", "gpucheck.checks.torch_reference", "gpucheck.report.formats.json"),
)
"""What every evaluation needs; what is not there any more is loaded by the evaluation itself."""
HANG = b'"outcome":"hang"'
"""What a record holds of a case that did not end: the others of the same pair would not end either."""


def main() -> None:
    """Does what is asked for until the connection is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    die_with_parent(os.getppid())  # while nothing runs that is to be ended first
    _load()
    outlive_parent()
    try:
        send(connection, {"loaded": True})
        while True:
            asked = receive(connection)
            if "stop" not in asked:  # of one that has just ended
                send(connection, _Evaluation(asked, connection).carry_out())
    except (EOFError, OSError):
        os._exit(0)  # taking down an interpreter with torch in it takes its time


def _load() -> None:
    with Bytecode("torch", cache_root):
        for name in LOADED:
            with suppress(ImportError):
                import_module(name)
        import_module("gpucheck.cli.present").load()
    with suppress(Exception):  # the evaluation meets it too, and reports it
        if os.environ.get(VARIABLE):
            of_all = import_module("gpucheck.worker.device.child").import_ahead
            of_all(None, "cuda", candidates=True, extensions=True, compiled=True)
        else:
            import_module("torch.utils.cpp_extension")


class _Evaluation:
    """One evaluation or proof."""

    def __init__(self, asked: Mapping[str, Any], connection: Connection) -> None:
        self._asked, self._connection = asked, connection
        self._folder = Path(asked["folder"])
        self._stopped = ""  # why it is to end early

    def carry_out(self) -> dict[str, Any]:
        """How it ended and what it took."""
        begin = time.monotonic()
        family = Family()
        watch = ResourceWatch(self._asked["limits"], self._folder, self._asked["uuid"])
        pid = self._fork()
        exceeded, code = None, None
        while code is None and exceeded is None and not self._stopped:
            self._connection.poll(POLL)
            code, exceeded, self._stopped = code_if_ended(pid), watch.look(), self._heard()
            if code is None and self._hangs():
                code = _asked_to_end(pid)
                break
        if code is None:
            _freeze()
            _kill_session(pid)
        stuck = family.end()
        return {
            "code": code,
            "exceeded": None if exceeded is None else {"limit": exceeded.limit, "detail": exceeded.detail},
            "stopped": self._stopped,
            "stuck": stuck,
            "seconds": time.monotonic() - begin,
            "host_memory": watch.peak_host,
            "device_memory": watch.peak_device,
            "processes": watch.peak_processes,
        }

    def _heard(self) -> str:
        """Why the server wants it to end; "" while it does not."""
        try:
            if not self._connection.poll():
                return ""
            heard = receive(self._connection)
            return str(heard["stop"]) if heard["name"] == self._asked["name"] else ""
        except (EOFError, OSError, ValueError, KeyError):
            return "the server is gone"

    def _hangs(self) -> bool:
        with suppress(OSError):
            return HANG in (self._folder / "run/records/rank-00000.jsonl").read_bytes()
        return False

    def _fork(self) -> int:
        def work() -> None:
            die_with_parent(owner)
            os.setsid()
            self._enter()
            self._work()

        owner, pid = os.getpid(), os.fork()
        if not pid:
            end_with(work)
        return pid

    def _enter(self) -> None:
        """Takes this process away from all but its folder and what it may use."""
        close_files([])
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, signal.SIG_DFL)
        printed = os.open(self._folder / PRINTED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number in (1, 2):
            os.dup2(printed, number)
        os.close(printed)
        os.chdir(self._folder)
        os.environ.update(self._asked["environment"])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        memory, hard = self._asked["limits"]["host_memory"], resource.getrlimit(resource.RLIMIT_DATA)[1]
        if memory and not self._asked["uuid"]:  # drivers of GPUs map more than they use
            memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        with suppress(OSError):  # where memory runs out, the kernel shall end this process and not the server
            Path("/proc/self/oom_score_adj").write_text("500")
        if self._asked["hidden"]:
            confine([self._folder, Path("/dev"), Path("/proc")], Path(self._asked["hidden"]))

    def _work(self) -> None:
        sys.argv = ["gpucheck", *self._asked["command"]]
        runpy.run_module(self._asked["module"], run_name="__main__", alter_sys=True)


def _asked_to_end(pid: int) -> int | None:
    """The exit code of a run that may still write its report; None where it does not end."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    code = None
    while code is None and time.monotonic() < deadline:
        time.sleep(POLL)
        code = code_if_ended(pid)
    return code


def _freeze() -> None:
    """Stops all descendants: what forks as fast as it can does not while the others are killed."""
    frozen: set[int] = set()
    for _ in range(ROUNDS):
        new = descendants_of(os.getpid()) - frozen
        if not new:
            return
        for pid in new:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        frozen |= new


def _kill_session(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
