"""Starting the ranks with torchrun, watching them, and ending them whatever happens."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpucheck.launch.relay import has_children
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.model.plan import Plan

GRACE = 2.0  # s between asking torchrun to end and killing it
POLL = 0.1  # s
SCRATCH_PREFIX = "gpucheck-"
ROOM = 4 << 30  # bytes that must be free in /dev/shm for inputs and references to live there


@dataclass(frozen=True)
class Rendezvous:
    """The torchrun options of a run over several nodes."""

    nnodes: int = 1
    node_rank: int = 0
    endpoint: str = ""  # HOST:PORT on node 0; the port after it takes records
    id: str = "gpucheck"
    backend: str = "c10d"

    def check(self) -> None:
        """Raises UsageError where the options do not fit together."""
        if self.nnodes < 1 or not 0 <= self.node_rank < self.nnodes:
            raise UsageError(f"--node-rank {self.node_rank} is not within the {self.nnodes} node(s) of --nnodes")
        if self.nnodes > 1 and not self.endpoint:
            raise UsageError("--nnodes above 1 needs --rdzv-endpoint HOST:PORT of node 0, the same on every node")
        _, colon, port = self.endpoint.rpartition(":")
        if self.nnodes > 1 and not (colon and port.isdigit() and 0 < int(port) < 65535):
            raise UsageError(f"--rdzv-endpoint {self.endpoint} is not HOST:PORT with a port from 1 to 65534")


@dataclass(frozen=True)
class Ending:
    """How the ranks ended."""

    code: int | None  # of torchrun; None when it was ended from here
    timed_out: bool
    signal: int  # that interrupted this command, or 0
    seconds: float


def command(plan: Plan, run: Path, rendezvous: Rendezvous) -> list[str]:
    """The torchrun command line of a run."""
    options = ["--nproc-per-node", str(plan.nproc), "--max-restarts", "0"]
    if rendezvous.nnodes == 1:
        options.append("--standalone")
    else:
        options += ["--nnodes", str(rendezvous.nnodes), "--node-rank", str(rendezvous.node_rank)]
        options += ["--rdzv-backend", rendezvous.backend, "--rdzv-endpoint", rendezvous.endpoint]
        options += ["--rdzv-id", rendezvous.id]
        if rendezvous.backend == "c10d":  # else a node that only looks like node 0 might hold what all of them need
            options += ["--rdzv-conf", f"is_host={int(rendezvous.node_rank == 0)}"]
    options += ["--log-dir", str(run / "logs"), "--redirects", "3"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "gpucheck.worker", str(run)]


def launch(plan: Plan, run: Path, rendezvous: Rendezvous, watch: Callable[[], bool | None]) -> Ending:
    """Runs all ranks of this node to their end.

    Args:
        plan: already written to the run folder.
        watch: called about ten times a second while the ranks run. Once it says that another node is gone, the ranks
            here finish, and torchrun, which would wait for that node, is ended.

    Raises:
        InfrastructureError: torchrun could not be started.
    """
    scratch = _scratch(run)
    log = run / "logs" / f"torchrun-{rendezvous.node_rank}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    received: list[int] = []
    previous = {number: signal.signal(number, lambda got, _: received.append(got)) for number in _SIGNALS}
    begin = time.monotonic()
    process: subprocess.Popen[bytes] | None = None
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command(plan, run, rendezvous),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(plan, scratch),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        while process.poll() is None and not received and time.monotonic() - begin < plan.timeout:
            if watch() and not has_children(process.pid):
                break
            time.sleep(POLL)
        code = process.poll()
        if code is None:
            _end(process)
        watch()
        return Ending(
            code=code,
            timed_out=code is None and not received and time.monotonic() - begin >= plan.timeout,
            signal=received[0] if received else 0,
            seconds=time.monotonic() - begin,
        )
    except OSError as error:
        raise InfrastructureError(f"torchrun could not be started: {error}") from None
    finally:
        if process is not None and process.poll() is None:
            _end(process)
        shutil.rmtree(scratch, ignore_errors=True)
        for number, handler in previous.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _environment(plan: Plan, scratch: Path) -> dict[str, str]:
    package_parent = str(Path(__file__).resolve().parent.parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if package_parent not in paths:  # else the caller wants something ahead of it, say another triton
        paths.insert(0, package_parent)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "GPUCHECK_SCRATCH": str(scratch),
        "OMP_WAIT_POLICY": os.environ.get(
            "OMP_WAIT_POLICY", "passive"
        ),  # idle threads must not spin: ranks share cores
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // plan.nproc)),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends torchrun and with it, through their parent-death signals, every process of the run."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def die_with_parent() -> None:
    """Asks the kernel, in a process about to be started, to kill it when its parent ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _scratch(run: Path) -> Path:
    """A folder for what the ranks of this node share: in memory where there is room, else in the run folder.

    Folders that killed commands left in memory are removed first.
    """
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        return Path(tempfile.mkdtemp(prefix="scratch-", dir=run))
    for leftover in memory.glob(f"{SCRATCH_PREFIX}*-*"):
        owner = leftover.name.removeprefix(SCRATCH_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists() and leftover.stat().st_uid == os.getuid():
            shutil.rmtree(leftover, ignore_errors=True)
    space = os.statvfs(memory)
    if space.f_bavail * space.f_frsize < ROOM:
        return Path(tempfile.mkdtemp(prefix="scratch-", dir=run))
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-", dir=memory))
