"""Starts the ranks with torchrun, watches them, and ends every process of theirs whatever happens."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from gpucheck.host.containment import UNWALLED, files_are_walled, hide_memory
from gpucheck.host.kernel_log import KernelLog
from gpucheck.host.log_excerpt import Mark, printed
from gpucheck.host.node_gpus import architectures, free_memory
from gpucheck.host.processes import Family, ForkedProcess, Process, children_of, end, on_signals, start, state_of
from gpucheck.launch.early_torchrun import AGENT, LOADED, EarlyTorchrun, loading_environment
from gpucheck.launch.gpus import ARCHITECTURES, FREE_MEMORY
from gpucheck.launch.node_channel import has_children
from gpucheck.launch.scratch import first_rank, scratch
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.model.plan import Plan

AnyProcess = Process | ForkedProcess
GRACE = 2.0  # s between asking torchrun to end and killing it
LINGER = 30.0  # s within which torchrun must end once all ranks have
STOPPED = 10.0  # s within which a torchrun that a signal stopped before it started the ranks must go on
POLL = 0.1  # s
LOOK = "0.03"  # s between two looks of torchrun at its ranks


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

    code: int | None  # exit code of torchrun; None: this command killed it
    timed_out: bool
    signal: int  # number of the signal that interrupted this command; 0: none
    seconds: float
    stuck: str = ""  # why this command killed torchrun, if neither for the time limit nor after a signal
    said: tuple[str, ...] = ()  # first and last lines that torchrun printed, if it ended with an error


def command(plan: Plan, run: Path, rendezvous: Rendezvous) -> list[str]:
    """The torchrun command line of a run."""
    options = ["--nproc-per-node", str(plan.nproc), "--max-restarts", "0", "--monitor-interval", LOOK]
    if rendezvous.nnodes == 1:
        options.append("--standalone")
    else:
        options += ["--nnodes", str(rendezvous.nnodes), "--node-rank", str(rendezvous.node_rank)]
        options += ["--rdzv-backend", rendezvous.backend, "--rdzv-endpoint", rendezvous.endpoint]
        options += ["--rdzv-id", rendezvous.id]
        if rendezvous.backend == "c10d":  # else a node that only looks like node 0 might hold what all of them need
            options += ["--rdzv-conf", f"is_host={int(rendezvous.node_rank == 0)}"]
    options += ["--log-dir", str(run / "logs"), "--redirects", "3"]
    return [sys.executable, "-m", AGENT, *options, "-m", "gpucheck.worker", str(run)]


def _start(
    plan: Plan,
    run: Path,
    rendezvous: Rendezvous,
    environment: Mapping[str, str],
    log: Path,
    early: EarlyTorchrun | None,
) -> AnyProcess:
    """Starts torchrun from what has torch loaded, or is loading it: a fork of this process, or ``early``."""
    words = command(plan, run, rendezvous)
    module, arguments = words[1:3], words[3:]
    if module == ["-m", AGENT] and LOADED in sys.modules and threading.active_count() == 1:
        return ForkedProcess(lambda: import_module(AGENT).main(arguments), environment, log)
    loading = early.hand_over(arguments, environment, log) if early and module == ["-m", AGENT] else None
    return loading or start(words, environment, log)


def launch(
    plan: Plan,
    run: Path,
    rendezvous: Rendezvous,
    watch: Callable[[], bool],
    peer_lost: Callable[[], bool | None] | None = None,
    early: EarlyTorchrun | None = None,
) -> Ending:
    """Runs all ranks of this node until they end, and leaves none of their processes behind.

    Messages of the GPU driver from that time are written to the run folder (``driver-N.json``).

    Args:
        plan: already written to the run folder.
        watch: called about ten times a second while the ranks run; returns whether all of them have ended.
        peer_lost: polled like ``watch``. Once True, local ranks finish and torchrun is killed: it would wait for the
            lost node.
        early: torchrun, if it has been started to load torch.

    Raises:
        InfrastructureError: torchrun could not be started.
    """
    received: list[int] = []
    shared = ExitStack()
    shared.enter_context(on_signals(lambda got, _: received.append(got)))
    folder = shared.enter_context(scratch(run))
    log = run / "logs" / f"torchrun-{rendezvous.node_rank}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    stuck = ""
    process: AnyProcess | None = None
    family = Family()
    if plan.candidates:
        hide_memory()
    try:
        process = _start(plan, run, rendezvous, _environment(plan, folder), log, early)
        if plan.device == "cuda":
            threading.Thread(target=_describe_gpus, args=(folder,), daemon=True).start()
        log_of_kernel = KernelLog(gpus=plan.device == "cuda")
        shared.callback(log_of_kernel.close)
        family.leave(log_of_kernel.process)
        health = _Health(process.pid)
        while process.poll() is None and not received and not stuck and time.monotonic() - begin < plan.timeout:
            ended = watch()
            if ended:
                log_of_kernel.conclude()  # torchrun takes a while to end too
            stuck = health.trouble(all_ended=ended)
            if peer_lost is not None and peer_lost() and not has_children(process.pid):
                break
            time.sleep(POLL / 10 if ended else POLL)
        code = process.poll()
        late = time.monotonic() - begin >= plan.timeout
        if code is None:
            end(process, GRACE)  # and with it, through their parent-death signals, every process of the run
        family.end()
        watch()
        if not received:
            node_rank = rendezvous.node_rank
            keep_driver_messages(log_of_kernel, plan, run, node_rank, first_rank(folder, node_rank * plan.nproc))
        return Ending(
            code=code,
            timed_out=code is None and not received and not stuck and late,
            signal=received[0] if received else 0,
            seconds=time.monotonic() - begin,
            stuck=stuck if code is None and not received else "",
            said=tuple(printed([Mark(log)])) if code else (),
        )
    except OSError as error:
        raise InfrastructureError(f"torchrun could not be started: {error}") from None
    finally:
        if process is not None:
            end(process, GRACE)
        family.end()
        shared.close()


class _Health:
    """Tells a torchrun that will never end from one that is still at work."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended: float | None = None  # when all ranks had ended
        self._stopped: float | None = None  # since when a signal has stopped it

    def trouble(self, *, all_ended: bool) -> str:
        """Why there is no use in waiting, for the report; "" while torchrun may still end.

        A torchrun that a signal stopped cannot end, but ranks that it has started go on without it.
        """
        now, stopped = time.monotonic(), state_of(self._pid) == "T"
        self._ended = self._ended or (now if all_ended else None)
        self._stopped = (self._stopped or now) if stopped else None
        if self._ended and (stopped or now - self._ended > LINGER):
            return "every rank had ended, but torchrun " + ("was stopped by a signal" if stopped else "did not end")
        if self._stopped and now - self._stopped > STOPPED and not children_of(self._pid):
            return "torchrun was stopped by a signal before it had started the ranks"
        return ""


def keep_driver_messages(log: KernelLog, plan: Plan, run: Path, node_rank: int = 0, first: int = 0) -> None:
    """Writes the messages of the GPU driver to the run folder, each with the rank whose GPU it names.

    Args:
        first: the rank of this node's local rank 0.
    """
    heard = []
    for item in log.finish():
        local_rank = item.pop("local_rank")
        if local_rank is None or local_rank < plan.nproc:
            heard.append({**item, "rank": None if local_rank is None else first + local_rank})
        elif "number" in item:  # an Xid of a GPU that is visible and has no rank
            heard.append({**item, "rank": None})
    if heard:
        with suppress(OSError):
            (run / f"driver-{node_rank}.json").write_text(json.dumps(heard), encoding="utf-8")


def _describe_gpus(scratch: Path) -> None:
    """Writes what the ranks need to know of the GPUs while these start: first what their first reference needs."""
    with suppress(OSError):  # the run may have ended
        for name, ask in ((ARCHITECTURES, architectures), (FREE_MEMORY, free_memory)):
            partial = scratch / f"{name}.partial"
            partial.write_text(" ".join(map(str, ask())))
            partial.rename(scratch / name)


def _environment(plan: Plan, scratch: Path) -> dict[str, str]:
    return {
        **loading_environment(plan.nproc, debug=plan.debug),
        "GPUCHECK_SCRATCH": str(scratch),
        "GPUCHECK_LAUNCHER": str(os.getpid()),
        **({UNWALLED: "1"} if plan.candidates and not files_are_walled() else {}),
    }
