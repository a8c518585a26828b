"""The child: owns the device, runs kernels, judges nothing."""

from __future__ import annotations

import faulthandler
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpucheck.model.case import Case
from gpucheck.model.errors import Inapplicable

FILLS = (0xFF, 0x00)


@dataclass(frozen=True)
class Setup:
    """Everything a child needs before its first case."""

    placement: str
    local_rank: int
    library_root: str
    generation: str


@dataclass(frozen=True)
class Request:
    """One case to run."""

    case: Case
    inputs: str  # file with the inputs
    outputs: str  # file to write the outputs of the first pass to


@dataclass
class Reply:
    """What running one case gave; outputs lie in the request's file."""

    status: str  # "ran", "inapplicable" or "error"
    message: str = ""
    traceback: str = ""
    digests: list[str] = field(default_factory=list)  # of all outputs, one a pass
    guards: list[str] = field(default_factory=list)  # broken guard bands
    expected_kernels: tuple[str, ...] = ()
    launches: list[dict[str, Any]] = field(default_factory=list)
    device: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    fatal: bool = False  # the process can no longer be used


def serve(connection: Connection) -> None:
    """Takes a :class:`Setup`, then requests until the connection closes."""
    faulthandler.enable(sys.stderr)
    try:
        setup: Setup = connection.recv()
        bench = Bench(setup)
        connection.send(bench.device_name)
        while True:
            request: Request = connection.recv()
            connection.send(bench.run(request))
    except EOFError:
        return


class Bench:
    """The device of this process with the library and the watched memory on it."""

    def __init__(self, setup: Setup) -> None:
        from gpucheck.worker.placements import PLACEMENTS

        self.setup = setup
        if setup.placement == "cpu":
            from gpucheck import interpreter

            interpreter.install()
        self.device = PLACEMENTS[setup.placement]().enter(setup.local_rank)

        import torch

        from gpucheck.worker.arena import Arena
        from gpucheck.worker.observe import Observer

        self.observer = Observer()
        self.device_name = "cpu"
        if self.device.type == "cuda":
            self.observer.install_compiled()
            self.device_name = torch.cuda.get_device_name(self.device)
        else:
            self.observer.install_interpreter()
        self.arena = Arena(self.device)
        self._library: Any = None

    def library(self) -> Any:
        """The adapter, loaded at first use.

        Raises:
            Inapplicable: the library does not run with this Triton.
        """
        if self._library is None:
            from gpucheck.library import adapters

            self._library = adapters.load(Path(self.setup.library_root), self.setup.generation)
        return self._library

    def run(self, request: Request) -> Reply:
        """Runs a case twice, in memory filled with 0xFF and with 0x00."""
        reply = Reply("ran", device=self.device_name)
        try:
            self._run(request, reply)
        except Inapplicable as reason:
            reply.status, reply.message = "inapplicable", str(reason)
        except Exception as error:
            reply.status = "error"
            reply.message = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            reply.traceback = traceback.format_exc()
            reply.fatal = self._poisoned_context()
        reply.launches = [asdict(launch) for launch in self.observer.take()]
        return reply

    def _run(self, request: Request, reply: Reply) -> None:
        import torch

        from gpucheck import checks
        from gpucheck.verify import digest

        case = request.case
        check = checks.load(case.check)
        self.observer.start()
        inputs = timed(reply, "load", lambda: torch.load(request.inputs, mmap=True, weights_only=True))
        for number, fill in enumerate(FILLS):
            outputs = self._one_pass(check, case, inputs, fill, reply)
            begin = time.perf_counter()
            held = {name: value.detach().to("cpu").contiguous() for name, value in outputs.items()}
            reply.digests.append(digest.whole(*held.values()))
            if number == 0:
                torch.save(held, request.outputs)
            _add(reply, "copy", time.perf_counter() - begin)

    def _one_pass(self, check: Any, case: Case, inputs: Any, fill: int, reply: Reply) -> dict[str, Any]:
        from gpucheck.worker.arena import WatchedAllocation
        from gpucheck.worker.observe import kernel_clock

        begin = time.perf_counter()
        self.arena.reset(fill)
        runtime = _Runtime(self)
        placed = {name: self.arena.place(value) for name, value in inputs.items()}
        prepared = check.prepare(case, placed, runtime)
        reply.expected_kernels = check.kernels(case, runtime)
        self._synchronize()
        _add(reply, "prepare", time.perf_counter() - begin)
        begin, compiled = time.perf_counter(), self.observer.compile_seconds
        with WatchedAllocation(self.arena), kernel_clock(self.device) as clock:
            outputs: dict[str, Any] = check.launch(case, prepared, runtime)
        self._synchronize()
        compiled = self.observer.compile_seconds - compiled
        _add(reply, "compile", compiled)
        _add(reply, "launch", time.perf_counter() - begin - compiled)
        reply.seconds["kernel"] = clock[0]  # of the last pass, when nothing is compiled any more
        reply.guards += self.arena.broken_guards()
        return outputs

    def _synchronize(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _poisoned_context(self) -> bool:
        """Whether the CUDA context no longer works after an error."""
        try:
            self._synchronize()
        except Exception:
            return True
        return False


class _Runtime:
    """:class:`gpucheck.checks.base.Runtime` of a bench, with the library loaded when first asked for."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.device = bench.device
        self.place = bench.arena.place

    @property
    def library(self) -> Any:
        return self._bench.library()


def timed(reply: Reply, stage: str, work: Callable[[], Any]) -> Any:
    """Runs ``work`` and adds its time to a stage of the reply."""
    begin = time.perf_counter()
    result = work()
    _add(reply, stage, time.perf_counter() - begin)
    return result


def _add(reply: Reply, stage: str, seconds: float) -> None:
    reply.seconds[stage] = reply.seconds.get(stage, 0.0) + seconds
