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
from gpucheck.worker import stacks
from gpucheck.worker.passes import FILLS, depends_on_fill, wants_another_pass

LOCATE_SECONDS = 5.0  # spent on finding the tensor whose surroundings are read


@dataclass(frozen=True)
class Setup:
    """Everything a child needs before its first case."""

    placement: str
    local_rank: int
    library_root: str
    generation: str
    stacks: str  # file to write the stacks to when asked for them


@dataclass(frozen=True)
class Request:
    """One case to run."""

    case: Case
    inputs: str  # file with the inputs
    outputs: str  # file to write the outputs of the first pass to; for further ones see :func:`outputs_file`
    late: bool = False  # inputs are produced right before the launch
    repeat: int = 1


def outputs_file(outputs: str, number: int) -> str:
    """The file of the ``number``-th distinct outputs of a request whose case is repeated."""
    return f"{outputs}.{number}" if number else outputs


@dataclass
class Reply:
    """What running one case gave; outputs lie in the request's file."""

    status: str  # "ran", "inapplicable" or "error"
    message: str = ""
    traceback: str = ""
    digests: list[str] = field(default_factory=list)  # of all outputs, one a pass
    saved: list[str] = field(default_factory=list)  # the digests whose outputs were written, in the order of files
    guards: list[str] = field(default_factory=list)  # broken guard bands
    blamed: list[tuple[str, str]] = field(default_factory=list)  # kind and detail of violations that the check saw
    speed: dict[str, float] = field(default_factory=dict)  # what -> s a call takes
    sensitive: str = ""  # memory whose fill changes the outputs, in words
    expected_kernels: tuple[str, ...] = ()
    launches: list[dict[str, Any]] = field(default_factory=list)
    device: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    fatal: bool = False  # the process can no longer be used


def serve(connection: Connection) -> None:
    """Takes a :class:`Setup` and answers what went wrong with it, or ""; then requests until the connection closes."""
    faulthandler.enable(sys.stderr)
    try:
        setup: Setup = connection.recv()
        stacks.register(Path(setup.stacks))
        try:
            bench = Bench(setup)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            raise
        connection.send("")
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
        self.placement = PLACEMENTS[setup.placement]()
        self.device = self.placement.enter(setup.local_rank)

        import torch

        from gpucheck import checks
        from gpucheck.worker.arena import Arena
        from gpucheck.worker.observe import Observer

        self.observer = Observer([Path(setup.library_root) / "triton_kernels", *checks.folders()])
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
        """Runs a case in memory filled with 0xFF and with 0x00; where the outputs differ, with 0xFF once more.

        A case that is repeated runs as often as asked for, in memory filled with the one and the other by turns.
        """
        reply = Reply("ran", device=self.device_name)
        try:
            self._run(request, reply)
        except Inapplicable as reason:
            reply.status, reply.message = "inapplicable", str(reason)
        except Exception as error:
            reply.status = "error"
            reply.message = f"{type(error).__name__}: {first_line(error)}"
            reply.traceback = traceback.format_exc()
            reply.fatal = self._poisoned_context()
        reply.launches = reply.launches or [asdict(launch) for launch in self.observer.take()]
        return reply

    def _run(self, request: Request, reply: Reply) -> None:
        import torch

        from gpucheck import checks
        from gpucheck.verify import digest

        case = request.case
        check = checks.load(case.check)
        self.observer.start()
        inputs = timed(reply, "load", lambda: torch.load(request.inputs, mmap=True, weights_only=True))
        while wants_another_pass(request.repeat, reply.digests):
            fill = FILLS[len(reply.digests) % len(FILLS)]
            prepared, outputs = self._one_pass(check, case, inputs, reply, fill, late=request.late)
            begin = time.perf_counter()
            held = {name: value.detach().to("cpu").contiguous() for name, value in outputs.items()}
            whole = digest.whole(*held.values())
            if not reply.digests or (request.repeat > 1 and whole not in reply.saved):
                torch.save(held, outputs_file(request.outputs, len(reply.saved)))
                reply.saved.append(whole)
            reply.digests.append(whole)
            _add(reply, "copy", time.perf_counter() - begin)
            self._inspect(check, case, prepared, held, reply)
        reply.launches = [asdict(launch) for launch in self.observer.take()]
        if depends_on_fill(reply.digests) and not request.late:
            begin = time.perf_counter()
            reply.sensitive = self._sensitive(check, case, inputs, reply.digests[1])
            _add(reply, "locate", time.perf_counter() - begin)

    def _sensitive(self, check: Any, case: Case, inputs: Any, baseline: str) -> str:
        """A tensor in or around whose memory the fill changes the outputs, found by filling one at a time otherwise.

        Looks from the last tensor to the first, since what was made from the inputs is what kernels read.

        Args:
            baseline: digest of the outputs where everything is filled with the second of ``FILLS``.
        """
        deadline = time.perf_counter() + LOCATE_SECONDS
        from gpucheck.verify import digest

        for number in reversed(range(len(self.arena))):
            _, outputs = self._one_pass(check, case, inputs, Reply("ran"), FILLS[1], odd=number)
            if digest.whole(*(value.detach().to("cpu").contiguous() for value in outputs.values())) != baseline:
                return self.arena.words(number)
            if time.perf_counter() > deadline:
                break
        return ""

    def _one_pass(
        self, check: Any, case: Case, inputs: Any, reply: Reply, fill: int, odd: int | None = None, late: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """What was prepared, and the outputs on the device."""
        from gpucheck.worker.arena import WatchedAllocation
        from gpucheck.worker.observe import kernel_clock

        begin = time.perf_counter()
        self.arena.reset(fill, odd)
        runtime = _Runtime(self, reply)
        placed = {name: self.arena.place(value) for name, value in inputs.items()}
        prepared = check.prepare(case, placed, runtime)
        reply.expected_kernels = check.kernels(case, runtime)
        self._synchronize()
        _add(reply, "prepare", time.perf_counter() - begin)
        begin, compiled = time.perf_counter(), self.observer.compile_seconds
        if late:
            self._hold_back(check, case, placed, prepared, runtime)
        with WatchedAllocation(self.arena), kernel_clock(self.device) as clock:
            outputs: dict[str, Any] = check.launch(case, prepared, runtime)
        self._synchronize()
        compiled = self.observer.compile_seconds - compiled
        _add(reply, "compile", compiled)
        _add(reply, "launch", time.perf_counter() - begin - compiled)
        reply.seconds["kernel"] = clock[0]  # of the last pass, when nothing is compiled any more
        reply.guards += self.arena.broken_guards()
        return prepared, outputs

    def _inspect(self, check: Any, case: Case, prepared: Any, outputs: dict[str, Any], reply: Reply) -> None:
        from gpucheck.worker.arena import WatchedAllocation

        begin = time.perf_counter()
        with WatchedAllocation(self.arena):  # so that memory nobody writes holds the same in further calls
            check.inspect(case, prepared, outputs, _Runtime(self, reply))
        self._synchronize()
        _add(reply, "inspect", time.perf_counter() - begin)

    def _hold_back(self, check: Any, case: Case, placed: dict[str, Any], prepared: Any, runtime: Any) -> None:
        """Rehearses the launch, so that nothing is left to compile or fill, and makes its inputs come late."""
        from gpucheck.worker.arena import WatchedAllocation
        from gpucheck.worker.late import hold_back

        with WatchedAllocation(self.arena):
            check.launch(case, prepared, runtime)
        self._synchronize()
        self.arena.reserve()
        produce = hold_back((placed[name] for name in check.late_inputs if name in placed), self.device)
        self._synchronize()
        produce()

    def _synchronize(self) -> None:
        """Waits for the device, and for the current one where that is another and is in use."""
        import torch

        from gpucheck.worker import driver

        if self.device.type != "cuda":
            return
        torch.cuda.synchronize(self.device)
        current = torch.cuda.current_device()
        if current != self.device.index and driver.has_context(current):
            torch.cuda.synchronize(current)

    def _poisoned_context(self) -> bool:
        """Whether the CUDA context no longer works after an error."""
        try:
            self._synchronize()
        except Exception:
            return True
        return False


class _Runtime:
    """:class:`gpucheck.checks.base.Runtime` of a bench, with the library loaded when first asked for."""

    def __init__(self, bench: Bench, reply: Reply) -> None:
        self._bench, self._reply = bench, reply
        self.device = bench.device
        self.place = bench.arena.place

    def blame(self, kind: str, detail: str) -> None:
        self._reply.blamed.append((kind, detail))

    def timed(self, what: str, seconds: float) -> None:
        self._reply.speed[what] = seconds

    @property
    def library(self) -> Any:
        return self._bench.library()


def first_line(error: Exception) -> str:
    """What an exception says, without the advice that CUDA errors carry after their first line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def timed(reply: Reply, stage: str, work: Callable[[], Any]) -> Any:
    """Runs ``work`` and adds its time to a stage of the reply."""
    begin = time.perf_counter()
    result = work()
    _add(reply, stage, time.perf_counter() - begin)
    return result


def _add(reply: Reply, stage: str, seconds: float) -> None:
    reply.seconds[stage] = reply.seconds.get(stage, 0.0) + seconds
