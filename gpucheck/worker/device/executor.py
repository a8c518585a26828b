"""Runs a case on one device, with the library under test and in guarded memory, and fills a Reply."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpucheck import checks
from gpucheck.checks.base import OUTPUTS, Check, Runtime
from gpucheck.host import cuda_driver
from gpucheck.model.case import Case
from gpucheck.model.conditions import FILLS, Conditions
from gpucheck.model.errors import Inapplicable, error_line, first_line
from gpucheck.model.record import EnginePart
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.triton_hooks import cache_damage
from gpucheck.triton_hooks.launch_hooks import kernel_cache
from gpucheck.verify import digest
from gpucheck.verify.views import to_device
from gpucheck.worker.device import stream_stress
from gpucheck.worker.device.benchmark import Stopwatch, steady
from gpucheck.worker.device.case_inspection import inspect
from gpucheck.worker.device.guarded_memory import GuardedMemory, WatchedAllocation
from gpucheck.worker.device.launch_observer import Observer, kernel_clock
from gpucheck.worker.device.placements import Binding
from gpucheck.worker.device.process_settings import restored_settings
from gpucheck.worker.device.repeated_calls import RepeatedCalls
from gpucheck.worker.device.side_effects import CallWatch, Place
from gpucheck.worker.device.threads_together import at_once
from gpucheck.worker.last_words import raised_from
from gpucheck.worker.memory_fills import FURTHER_FILL, depends_on_fill, fill_of, wants_another_pass
from gpucheck.worker.protocol import Allowance, Reply, Request, outputs_file

if TYPE_CHECKING:
    from gpucheck.worker.device.joint_group import JointGroup

LOCATE_SECONDS = 5.0  # of processor spent on finding the tensor whose surroundings are read
LOCATE_ENGINE_SECONDS = 30.0  # where an engine loads its weights anew each time
OTHER_SEED = 1  # added to a case's seed for the data of a launch whose outputs nobody reads

Outputs = dict[str, Tensor]


class Unusable(Exception):
    """A file of gpucheck itself cannot be read or written; this says nothing about the device."""


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


class CaseExecutor:
    """A device of this process; everything here runs in the thread that works for that device."""

    def __init__(self, binding: Binding, device: torch.device, library: Library, observer: Observer) -> None:
        self.binding, self.device, self.observer = binding, device, observer
        self.joint_group: JointGroup | None = None  # of a process that runs joint cases
        self.behind = False  # each launch comes after one on other data: what threads share is then not the same
        self.library = library
        self.memory = GuardedMemory(device)
        self._stopwatch = Stopwatch(device, lambda: not self.poisoned_context())
        self._suspect: int | None = (
            None  # number in the guarded memory of the tensor around which something was read last
        )
        self._last: tuple[_Pass, Any] | None = None  # with what it launched last, for the stopwatch
        self._repeats: RepeatedCalls | None = None  # of the outputs that the case gave first
        self._returned: list[Place] = []  # by the calls of the last pass; alive, so that no later call gets its memory
        self.device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    def run(self, request: Request) -> Reply:
        """Runs a case in memory filled with 0xFF and in memory filled with 0x00; more often if the outputs differ.

        A case with ``repeat`` runs at least that often; see :mod:`gpucheck.worker.memory_fills`.
        """
        reply = Reply("ran", device=self.device_name)
        self.observer.start()
        try:
            if request.group and self.joint_group:
                with timed(reply, "group"):
                    self.joint_group.enter(request.group, self.device, request.deadline)
            if request.inspection:
                inspect(self._outputs, self.library, self.device, request, reply)
            else:
                self._run(request, reply)
        except Inapplicable as reason:
            reply.status, reply.message = "inapplicable", str(reason)
        except Unusable as reason:
            reply.status, reply.message, reply.traceback = "harness", str(reason), traceback.format_exc()
        except Exception as error:
            reply.status = "error"
            explained = cache_damage.damage_note(error, kernel_cache()) + raised_from(error)
            reply.message = error_line(error) + explained
            reply.traceback, reply.source = traceback.format_exc(), self.observer.raised_at(error)
            reply.sticky = self.poisoned_context()
            reply.fatal = reply.sticky or out_of_memory(error)  # memory that leaked is free again in a fresh process
            self._salvage(error, reply, request)
        reply.launches = reply.launches or [asdict(launch) for launch in self.observer.take()]
        self._last, self._repeats, self._returned = None, None, []
        return reply

    def _run(self, request: Request, reply: Reply) -> None:
        case, conditions = request.case, request.conditions
        check = checks.load(case.check)
        with timed(reply, "load"), needed(request.inputs):
            held = torch.load(request.inputs, mmap=True, weights_only=True)
        if conditions.warm_up:
            self._warm_up(check, case, held, conditions)
        with timed(reply, "prepare"):  # once: each pass places copies of these
            inputs = {name: to_device(value, self.device) for name, value in held.items()}
        passes, together = 0, conditions.together
        while wants_another_pass(conditions.repeat, passes, *reply.settled, alike=together):
            first, fill = not reply.digests, fill_of(passes)
            prepared, launched = self.one_pass(check, case, inputs, reply, fill, conditions, watched=True)
            for outputs in launched:
                with timed(reply, "copy"):
                    copies = self._keep(outputs, reply, fill, request)
            if first and conditions.concurrency == 1:
                with timed(reply, "inspect"):
                    self._inspect(check, case, prepared, copies, reply, conditions)
            if first and self.observer.tuned:  # tells nothing of memory: it was launched on more than once
                reply.tuned, reply.by_fill = len(reply.digests), {}
                continue
            passes += 1
            if first and request.known and request.known == {name: digest.whole(held) for name, held in copies.items()}:
                break
        reply.launches = [asdict(launch) for launch in self.observer.take()]
        alone = conditions.concurrency == 1 and not together
        if depends_on_fill(*reply.settled) and not conditions.late and alone:
            with timed(reply, "locate"):
                reply.sensitive = self._sensitive(check, case, inputs, reply.settled[0][1], conditions)
                self._fill_further(check, case, inputs, reply, request)
        if request.timed is not None and steady(reply):
            self._time(held, request.timed, reply)

    def _time(self, inputs: Any, allowed: Allowance, reply: Reply) -> None:
        """Times further calls of the last pass; their launches are not counted."""
        assert self._last is not None
        work, prepared = self._last
        assert self._repeats is not None
        repeats, before = self._repeats, reply.calls
        call = partial(work.check.launch, work.case, prepared, work.runtime)
        with timed(reply, "speed"), self.observer.aside():
            self._stopwatch.time(call, repeats.add, work.check, work.case, inputs, work.placed, allowed, reply)
        if not reply.fatal:
            self.synchronize()  # what was launched meanwhile is known to have ended
            reply.blamed += [(ViolationKind.REPEATS_DIFFER, words) for words in repeats.differences(before)]

    def _keep(self, outputs: Outputs, reply: Reply, fill: int, request: Request) -> Outputs:
        """Notes the digest of one launch, writes its outputs if they must be judged, and returns copies of them.

        Outputs with the same bits as the first ones stay on the device: they would be judged the same.
        """
        if self._repeats is not None and self._repeats.same(outputs):
            self._take_down(reply.saved[0], reply, fill)
            return {}
        held = on_host(outputs)
        whole = digest.whole(*held.values())
        if whole not in reply.saved:
            path = outputs_file(request.outputs[0], len(reply.saved))
            with needed(path):
                torch.save(held, path)
            reply.saved.append(whole)
        if self._repeats is None:
            self._repeats = RepeatedCalls(outputs)
        self._take_down(whole, reply, fill)
        return held

    def _take_down(self, whole: str, reply: Reply, fill: int) -> None:
        """Notes the digest of one launch in memory filled with ``fill``."""
        reply.by_fill.setdefault(fill, reply.saved.index(whole))
        reply.digests.append(whole)
        reply.fills.append(fill)

    def _inspect(
        self, check: Check, case: Case, prepared: Any, outputs: Outputs, reply: Reply, conditions: Conditions
    ) -> None:
        """Lets the check look for more than wrong numbers; its launches for that are not counted."""
        watched = WatchedAllocation(self.memory)  # memory nobody writes stays the same in each call
        with self.observer.aside(), watched, self._guard(conditions):
            check.inspect(case, prepared, outputs, DeviceRuntime(self, reply))
        self.synchronize()

    def _salvage(self, error: Exception, reply: Reply, request: Request) -> None:
        """Writes the outputs that an error left: they show what was wrong before it was raised."""
        left: Outputs = getattr(error, OUTPUTS, {})
        on_the_host = all(value.device.type == "cpu" for value in left.values())
        if left and not reply.saved and (on_the_host or not reply.fatal):
            held = on_host(left)
            torch.save(held, request.outputs[0])
            reply.saved.append(digest.whole(*held.values()))

    def _sensitive(self, check: Check, case: Case, inputs: Any, baseline: str, conditions: Conditions) -> str:
        """Finds the tensor in or around which the fill of memory changes the outputs, by filling some otherwise.

        Tries the tensor of the last such case first, since similar cases place tensors alike, and then halves the
        tensors: the later half first, since kernels read what was made from the inputs.

        Args:
            baseline: digest of the outputs where everything is filled with the second of ``FILLS``.
        """
        deadline = time.process_time() + (LOCATE_ENGINE_SECONDS if conditions.engine else LOCATE_SECONDS)

        def changes(*odd: int) -> bool:
            return self._digest(check, case, inputs, odd, conditions) != baseline

        suspects = list(range(len(self.memory)))
        if self._suspect in suspects and changes(self._suspect):
            suspects = [self._suspect]
        while len(suspects) > 1:
            if time.process_time() > deadline:
                return ""
            middle = len(suspects) // 2
            suspects = suspects[middle:] if changes(*suspects[middle:]) else suspects[:middle]
        if not suspects or changes() or not changes(*suspects):  # what comes and goes is not the fill's doing
            return ""
        (self._suspect,) = suspects
        return self.memory.words(self._suspect)

    def _fill_further(self, check: Check, case: Case, inputs: Any, reply: Reply, request: Request) -> None:
        """Keeps the outputs of one more pass, in memory filled with a third byte; they are not judged."""
        outputs = self._outputs(check, case, inputs, FURTHER_FILL, request.conditions)
        reply.by_fill[FURTHER_FILL] = len(reply.saved)
        path = outputs_file(request.outputs[0], len(reply.saved))
        with needed(path):
            torch.save(outputs, path)

    def _digest(self, check: Check, case: Case, inputs: Any, odd: Container[int], given: Conditions) -> str:
        """Digest of the outputs of one more pass with some tensors' memory filled otherwise."""
        outputs = self._outputs(check, case, inputs, FILLS[1], Conditions(guarded=given.guarded), odd)
        return digest.whole(*outputs.values())

    def _outputs(
        self, check: Check, case: Case, inputs: Any, fill: int, conditions: Conditions, odd: Container[int] = ()
    ) -> Outputs:
        """The outputs of one more pass, on the host; nothing else of it is kept."""
        _, (outputs,) = self.one_pass(check, case, inputs, Reply("ran"), fill, conditions, odd)
        return on_host(outputs)

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
        watch = CallWatch(self.device, self._returned, one_by_one=watched and usual and conditions.concurrency == 1)
        runtime = DeviceRuntime(self, reply, watch)
        with timed(reply, "prepare"):
            self._last = None
            self.memory.reset(fill, odd)
            placed = {name: self.memory.place(value) for name, value in inputs.items()}
            work = _Pass(check, case, runtime, conditions, placed, watch)
            with self._guard(conditions):
                prepared = [check.prepare(case, placed, runtime)]
                for number in range(1, conditions.concurrency):
                    prepared.append(self._other(work) if number % 2 else check.prepare(case, placed, runtime))
                before = self._other(work) if self.behind else None
                reply.expected_kernels, reply.needed = (
                    check.kernels(case, runtime),
                    check.needed_launches(case, runtime),
                )
            if watched:
                watch.hand_in(placed)
                for each in prepared:
                    watch.hand_in(check.operands(case, each))
                    watch.own(each)
            self.synchronize()
            if self.observer.journal is not None:
                self.observer.journal.case(reply.expected_kernels)
        begin, compiled = time.perf_counter(), self.observer.compile_seconds
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
        _add(reply, "compile", compiled)
        _add(reply, "launch", time.perf_counter() - begin - compiled)
        reply.seconds["kernel"] = clock[0]  # of the last pass, when nothing is compiled any more
        reply.guards += self.memory.broken_guards()
        reply.calls += watch.calls
        if watched:
            with timed(reply, "side effects"):
                self._side_effects(work, prepared[0], inputs, reply)
        self._last = work, prepared[0]
        return prepared[0], outputs

    def _side_effects(self, work: _Pass, prepared: Any, inputs: Any, reply: Reply) -> None:
        """Takes down what the calls of a pass did beside answering, but for what the check allows."""
        work.watch.compare()
        self._returned = work.watch.returned
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
        with kept_settings, watched, self._guard(work.conditions), work.watch.watching():
            outputs: Outputs = work.check.launch(work.case, prepared, work.runtime)
        work.watch.outputs(outputs)
        return outputs

    def _same_settings(self, work: _Pass, *, shared: bool) -> AbstractContextManager[None]:
        report = partial(work.runtime.report_violation, ViolationKind.SETTINGS)
        return restored_settings(self.device, report, shared=shared)

    def _guard(self, conditions: Conditions) -> AbstractContextManager[None]:
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
                late = (work.placed[name] for name in work.check.late_inputs if name in work.placed)
                produce = stream_stress.hold_back(late, self.device)
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
        with self._guard(work.conditions):
            prepared = work.check.prepare(case, placed, work.runtime)
        self.synchronize()
        return prepared

    def _at_once(self, work: _Pass, prepared: list[Any]) -> list[Outputs]:
        """Calls from several threads that start together; the odd ones have other data, and nobody looks at theirs."""

        def call(number: int) -> tuple[Outputs, Any]:
            self.binding.settle(self.device)
            self.observer.start()
            with self._stream(work.conditions):
                outputs = self._call(work, prepared[number])
            self.synchronize()
            return outputs, self.observer.log

        with self._same_settings(work, shared=False):
            answers = at_once(call, len(prepared))
        self.observer.log.add([log for _, log in answers])
        return [outputs for outputs, _ in answers[::2]]

    def _stream(self, conditions: Conditions) -> AbstractContextManager[None]:
        return stream_stress.side_stream(self.device) if conditions.stream == "side" else ExitStack()  # type: ignore[return-value]

    def current_stream(self) -> int | None:
        """The stream of the device that work goes to now; None on the CPU."""
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else None

    def _warm_up(self, check: Check, case: Case, inputs: Any, conditions: Conditions) -> None:
        """Runs the case on device 0, where nobody looks at its outputs; kernels it left in caches may be used again."""
        first = CaseExecutor(self.binding, self.binding.enter(0), self.library, self.observer)
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
        torch.cuda.synchronize(self.device)
        current = torch.cuda.current_device()
        if current != self.device.index and cuda_driver.has_context(current):
            torch.cuda.synchronize(current)
        self.observer.settled()

    def poisoned_context(self) -> bool:
        """Whether the CUDA context no longer works after an error."""
        try:
            self.synchronize()
        except Exception:
            return True
        return False


class DeviceRuntime:
    """:class:`gpucheck.checks.base.Runtime` of an executor, with the library loaded when first asked for."""

    def __init__(self, executor: CaseExecutor, reply: Reply, watch: CallWatch | None = None) -> None:
        self._executor, self._reply, self._watch = executor, reply, watch
        self.device = executor.device
        self.place = executor.memory.place
        self.synchronize = executor.synchronize

    def report_violation(self, kind: ViolationKind, detail: str) -> None:
        self._reply.blamed.append((ViolationKind(kind), detail))

    def note(self, text: str) -> None:
        self._reply.message = text

    def engine_part(self, part: EnginePart) -> None:
        self._reply.engine = part

    @property
    def library(self) -> Any:
        adapter = self._executor.library()
        return adapter if self._watch is None else self._watch.library(adapter)


def on_host(outputs: Outputs) -> Outputs:
    """Copies of outputs in host memory, dense."""
    return {name: value.detach().to("cpu").contiguous() for name, value in outputs.items()}


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or in the process."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "out of memory" in str(error).lower()


@contextmanager
def needed(path: str) -> Iterator[None]:
    """Around the reading or writing of a file of gpucheck.

    Raises:
        Unusable: it failed.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = os.statvfs(Path(path).parent).f_bavail
        full = "" if free else ": nothing is free there"
        raise Unusable(f"{path} cannot be used: {first_line(error)}{full}") from error


@contextmanager
def timed(reply: Reply, stage: str) -> Iterator[None]:
    """Adds the time spent inside to a stage of the reply."""
    begin = time.perf_counter()
    yield
    _add(reply, stage, time.perf_counter() - begin)


def _add(reply: Reply, stage: str, seconds: float) -> None:
    reply.seconds[stage] = reply.seconds.get(stage, 0.0) + seconds


def _nothing() -> None:
    """Nothing is produced late."""
