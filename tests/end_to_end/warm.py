"""Runs on the CPU without their start: forks of one process that has torch and triton loaded, in place of torchrun.

The command, the plan, the kernels of the library, the judging and the records are the real ones; a run takes a second
instead of six, so that a test can afford the number of runs that a flaky fault needs.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

LOADED = [
    "torch",
    "torch.testing",
    "torch.distributed.run",
    "triton",
    "triton.runtime.interpreter",
    "gpucheck.worker.device.executor",
    "gpucheck.worker.supervisor.supervisor",
    "gpucheck.cli.present",
    "gpucheck.report.progress",
]
"""What the forks need not load themselves."""
REPOSITORY = Path(__file__).parents[2]


VARIABLES = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


class Warm:
    """The process that runs are forked from; it begins with the first of them."""

    @cached_property
    def _process(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.warm"],
            cwd=REPOSITORY,
            env={**os.environ, **VARIABLES, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ended(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """The exit code of ``gpucheck`` with these arguments and this environment; ``log`` gets what it prints."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([arguments, dict(environment), str(log)]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the process that runs are forked from has died"
        return int(answer)

    def run(self, command: Sequence[str], environment: dict[str, str], log: Path, limit: float) -> bool:
        """Stands in for the function of this signature in :mod:`gpucheck.tools.bisect.run_once`."""
        self.ended(command[3:], environment, log)
        return True

    def close(self) -> None:
        """Ends it."""
        if "_process" in vars(self):
            self._process.communicate()


def _serve() -> None:
    for name in LOADED:
        import_module(name)

    from gpucheck.cli import app, present
    from gpucheck.host import software as facts
    from gpucheck.launch import torchrun

    torchrun.launch = _launch
    present.load()
    facts.stat_fingerprint = functools.cache(facts.stat_fingerprint)
    facts.software(REPOSITORY / "tests")  # walks over torch and triton for all forks
    sys.argv = ["gpucheck", "run", "smoke", "--device", "cpu", "--dry-run"]
    with redirect_stdout(io.StringIO()), suppress(SystemExit):
        app.main()
    for line in sys.stdin:
        arguments, environment, log = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with open(log, "wb") as output:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
            os.environ.clear()
            os.environ.update({**environment, **VARIABLES})
            sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
            sys.argv = ["gpucheck", *arguments]
            _exit_with(app.main)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _launch(
    plan: Any, run: Path, _: object, watch: Callable[[], None], peer_lost: Any = None, early: object = None
) -> Any:
    """Ranks as forks of this process; what torchrun would tell them stands in their environment."""
    from gpucheck.launch.torchrun import Ending
    from gpucheck.worker.device.child import import_ahead, serve
    from gpucheck.worker.supervisor.supervisor import main

    begin, scratch = time.monotonic(), tempfile.mkdtemp()
    pids = []
    for rank in range(plan.nproc):
        pids.append(os.fork())
        if pids[-1] == 0:
            count = str(plan.nproc)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            os.environ["GPUCHECK_SCRATCH"] = scratch
            _exit_with(lambda: main(run, serve, import_ahead))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    watch()
    shutil.rmtree(scratch, ignore_errors=True)
    return Ending(max(codes, key=abs), timed_out=False, signal=0, seconds=time.monotonic() - begin)


def _exit_with(main: Callable[[], object]) -> None:
    """Ends a forked process with the code of ``main``."""
    code: object = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
