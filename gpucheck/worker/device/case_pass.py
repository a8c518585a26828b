"""One pass of a case on one device: inputs placed in guarded memory, the calls made as its conditions say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from gpucheck.checks.base import Check, Runtime
from gpucheck.host import cuda_driver
from gpucheck.model.case import Case
from gpucheck.model.conditions import FILLS, Conditions
from gpucheck.model.record import EnginePart
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.worker.device import stream_stress
from gpucheck.worker.device.guarded_memory import GuardedMemory, WatchedAllocation
from gpucheck.worker.device.launch_observer import Observer, kernel_clock
from gpucheck.worker.device.placements import Binding
from gpucheck.worker.device.process_settings import restored_settings
from gpucheck.worker.device.side_effects import CallWatch, Place
from gpucheck.worker.device.threads_together import at_once
from gpucheck.worker.protocol import Reply

OTHER_SEED = 1  # added to a case's seed for the data of a launch whose outputs nobody reads

Outputs = dict[str, Tensor]


class Library:
    """The adapter of the library under test, imported at first use and shared by the executors of a process."""

    def __init__(self, root: Path, generation: str) -> None:
        self._root, self._generation = root, generation
        self._lock = threading.Lock()
        self._adapter: Any = None

    def __call__(self) -> Any:
        """The adapter.

        Raises:
            Inapplicable: the library does not run with this Triton.
        """
        from gpucheck.library import adapters

        with self._lock:
            if self._adapter is None:
                self._adapter = adapters.load(self._root, self._generation)
            return self._adapter


@dataclass(frozen=True)
class _Pass:
    """What stays the same within one pass of a case."""

    check: Check
    case: Case
    runtime: Runtime
    conditions: Conditions
    placed: dict[str, Tensor]  # the inputs on the device
    watch: CallWatch


class DevicePasses:
    """A device of this process; everything here runs in the thread that works for that device."""

    def __init__(self, binding: Binding, device: torch.device, library: Library, observer: Observer) -> None:
        self.binding, self.device, self.observer = binding, device, observer
        self.behind = False  # each launch comes after one on other data: what threads share is then not the same
        self.library = library
        self.memory = GuardedMemory(device)
        self.last: tuple[_Pass, Any] | None = None  # with what it launched last, for the stopwatch
        self.returned: list[Place] = []  # by the calls of the last pass; alive, so that no later call gets its memory
        self._side: torch.cuda.Stream | None = None  # made when first asked for; the same one in all passes
        self._stream_of, self._wait_for = torch.cuda.current_stream, torch.cuda.synchronize  # whatever calls replace
        self._empty_cache = torch.cuda.empty_cache

    def one_pass(
        self,
        check: Check,
        case: Case,
        inputs: Any,
        reply: Reply,
        fill: int,
        conditions: Conditions,
        odd: Container[int] = (),
        *,
        watched: bool = False,
    ) -> tuple[Any, list[Outputs]]:
        """What was prepared, and the outputs of each launch: one, or every other one of those that are made at once.

        Args:
            odd: numbers of the tensors whose memory is filled otherwise.
            watched: what the calls do beside answering is taken down.
        """
        usual = not conditions.late and (conditions.consumer, conditions.stream) == ("waits", "default")
        watch = CallWatch(self.device, self.returned, one_by_one=watched and usual and conditions.concurrency == 1)
        runtime = DeviceRuntime(self, reply, watch)
        with timed(reply, "prepare"):
            self.last = None
            self.memory.reset(fill, odd)
            placed = {name: self.memory.place(value) for name, value in inputs.items()}
            work = _Pass(check, case, runtime, conditions, placed, watch)
            with self.guard(conditions):
                prepared = [check.prepare(case, placed, runtime)]
                for number in range(1, conditions.concurrency):
                    prepared.append(self._other(work) if number % 2 else check.prepare(case, placed, runtime))
                before = self._other(work) if self.behind else None
                reply.expected_kernels, reply.needed = (
                    check.kernels(case, runtime),
                    check.needed_launches(case, runtime),
                )
            if watched:
                watch.hand_in(placed, inputs)
                for each in prepared:
                    watch.hand_in(check.operands(case, each))
                    watch.own(each)
            self.synchronize()
            if self.observer.journal is not None:
                self.observer.journal.case(reply.expected_kernels)
        begin, compiled = perf_counter(), self.observer.compile_seconds
        with self._stream(conditions), kernel_clock(self.device) as clock:
            reply.stream = self.current_stream()
            if before is not None:
                self._call(work, before)
            if conditions.concurrency > 1:
                outputs = self._at_once(work, prepared)
            else:
                outputs = [self._ordered(work, prepared[0])]
        self.synchronize()
        compiled = self.observer.compile_seconds - compiled
        add_seconds(reply, "compile", compiled)
        add_seconds(reply, "launch", perf_counter() - begin - compiled)
        reply.seconds["kernel"] = clock[0]  # of the last pass, when nothing is compiled any more
        reply.guards += self.memory.broken_guards()
        reply.calls += watch.calls
        if watched:
            with timed(reply, "side effects"):
                self._side_effects(work, prepared[0], inputs, reply)
        self.last = work, prepared[0]
        return prepared[0], outputs

    def _side_effects(self, work: _Pass, prepared: Any, inputs: Any, reply: Reply) -> None:
        """Takes down what the calls of a pass did beside answering, but for what the check allows."""
        work.watch.compare()
        self.returned = work.watch.returned
        found = work.watch.side_effects()
        if not found:
            return
        allowed = work.check.allowed(work.case, prepared, inputs, work.runtime)
        fine = {
            ViolationKind.INPUTS: allowed.writes,
            ViolationKind.ALIAS: allowed.shares,
            ViolationKind.REUSED: allowed.shares,
            ViolationKind.LAYOUT: allowed.strided,
        }
        reply.blamed += [(each.kind, each.words) for each in found if each.name not in fine.get(each.kind, ())]

    def _call(self, work: _Pass, prepared: Any) -> Outputs:
        """Calls the code under test once."""
        shared = work.conditions.concurrency > 1 or work.conditions.placed.threads
        kept_settings, watched = self._same_settings(work, shared=shared), WatchedAllocation(self.memory)
        with kept_settings, watched, self.guard(work.conditions), work.watch.watching():
            outputs: Outputs = work.check.launch(work.case, prepared, work.runtime)
        work.watch.outputs(outputs)
        return outputs

    def _same_settings(self, work: _Pass, *, shared: bool) -> AbstractContextManager[None]:
        report = partial(work.runtime.report_violation, ViolationKind.SETTINGS)
        return restored_settings(self.device, report, shared=shared)

    def guard(self, conditions: Conditions) -> AbstractContextManager[None]:
        """Around every call into the code under test, so that a device guard holds in all of them."""
        return torch.cuda.device(self.device) if conditions.guarded else nullcontext()

    def _ordered(self, work: _Pass, prepared: Any) -> Outputs:
        """One call between its producer and its consumer."""
        conditions = work.conditions
        read: Callable[[Outputs], Outputs] = dict
        produce: Callable[[], None] = _nothing
        if conditions.late or conditions.consumer == "prompt":  # nothing may be left to compile or fill
            rehearsed = self._call(work, prepared)
            self.synchronize()
            self.memory.reserve()
            if conditions.consumer == "prompt":
                read = stream_stress.reader(rehearsed)
            if conditions.late:
                produce = stream_stress.hold_back(_late_inputs(work.check, work.placed), self.device)
            self.synchronize()
        other = self._other(work) if conditions.consumer == "delayed" else None
        produce()
        if conditions.consumer == "prompt":
            stream_stress.delay_launches()
        outputs = self._call(work, prepared)
        if other is not None:
            self._call(work, other)
            if self.device.type == "cuda":
                stream_stress.delay(self.device)
        return read(outputs)

    def _other(self, work: _Pass) -> Any:
        """The case prepared with other data."""
        case = replace(work.case, seed=work.case.seed + OTHER_SEED)
        inputs = work.check.inputs(case, torch.Generator().manual_seed(case.input_seed))
        placed = {name: self.memory.place(value) for name, value in inputs.items()}
        with self.guard(work.conditions):
            prepared = work.check.prepare(case, placed, work.runtime)
        self.synchronize()
        return prepared

    def _at_once(self, work: _Pass, prepared: list[Any]) -> list[Outputs]:
        """Calls from several threads that start together; the odd ones have other data, and nobody looks at theirs."""

        def call(number: int) -> tuple[Outputs, Any]:
            self.binding.settle(self.device)
            self.observer.start()
            with self._stream(work.conditions, own=True):
                outputs = self._call(work, prepared[number])
            self.synchronize()
            return outputs, self.observer.log

        with self._same_settings(work, shared=False):
            answers = at_once(call, len(prepared))
        self.observer.log.add([log for _, log in answers])
        return [outputs for outputs, _ in answers[::2]]

    def _stream(self, conditions: Conditions, *, own: bool = False) -> AbstractContextManager[None]:
        """The stream that the conditions ask for is the current one inside; ``own``: it is nobody else's."""
        if conditions.stream != "side":
            return nullcontext()
        if own:
            return stream_stress.side_stream(torch.cuda.Stream(self.device))
        self._side = self._side or torch.cuda.Stream(self.device)
        return stream_stress.side_stream(self._side)

    def current_stream(self) -> int | None:
        """The stream of the device that work goes to now; None on the CPU."""
        return self._stream_of(self.device).cuda_stream if self.device.type == "cuda" else None

    def warm_up(self, check: Check, case: Case, inputs: Any, conditions: Conditions) -> None:
        """Runs the case on device 0, where nobody looks at its outputs; kernels it left in caches may be used again."""
        first = DevicePasses(self.binding, self.binding.enter(0), self.library, self.observer)
        try:
            first.one_pass(check, case, inputs, Reply("ran"), FILLS[0], Conditions(guarded=conditions.guarded))
            first.memory.reset(FILLS[0])
        finally:
            self.binding.settle(self.device)
        self.observer.start()

    def synchronize(self) -> None:
        """Waits for the device, and for the current one where that is another and is in use."""
        if self.device.type != "cuda":
            return
        self._wait_for(self.device)
        current = torch.cuda.current_device()
        if current != self.device.index and cuda_driver.has_context(current):
            self._wait_for(current)
        self.observer.settled()

    def let_go(self) -> None:
        """Gives back the GPU memory that the allocator keeps: others beside this process may need it."""
        self.memory.reset(self.memory.fill)
        if self.device.type == "cuda":
            self._empty_cache()

    def poisoned_context(self) -> bool:
        """Whether the CUDA context no longer works after an error."""
        try:
            self.synchronize()
        except Exception:
            return True
        return False


class DeviceRuntime:
    """:class:`gpucheck.checks.base.Runtime` of a device, with the library loaded when first asked for."""

    def __init__(self, passes: DevicePasses, reply: Reply, watch: CallWatch | None = None) -> None:
        self._passes, self._reply, self._watch = passes, reply, watch
        self.device = passes.device
        self.place = passes.memory.place
        self.synchronize = passes.synchronize

    def report_violation(self, kind: ViolationKind, detail: str) -> None:
        self._reply.blamed.append((ViolationKind(kind), detail))

    def note(self, text: str) -> None:
        self._reply.message = text

    def engine_part(self, part: EnginePart) -> None:
        known = self._reply.engine
        if known is not None and known.stored and not part.stored:  # later passes load the same and do not look again
            part = replace(part, stored=known.stored, scale_groups=known.scale_groups)
        self._reply.engine = part

    @property
    def library(self) -> Any:
        adapter = self._passes.library()
        return adapter if self._watch is None else self._watch.library(adapter)


@contextmanager
def timed(reply: Reply, stage: str) -> Iterator[None]:
    """Adds the time spent inside to a stage of the reply."""
    begin = perf_counter()
    yield
    add_seconds(reply, stage, perf_counter() - begin)


def add_seconds(reply: Reply, stage: str, seconds: float) -> None:
    reply.seconds[stage] = reply.seconds.get(stage, 0.0) + seconds


def _late_inputs(check: Check, placed: Mapping[str, Tensor]) -> list[Tensor]:
    """The inputs that come late; raises ValueError where there are none: the case would prove nothing."""
    late = [placed[name] for name in check.late_inputs if name in placed]
    if not late:
        known = ", ".join(check.late_inputs) or "none"
        raise ValueError(f"no input can come late: late_inputs of the check names {known}, its inputs are {[*placed]}")
    return late


def _nothing() -> None:
    """Nothing is produced late."""
