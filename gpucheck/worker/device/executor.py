"""Runs a case on one device in several passes, see :mod:`case_pass`, and fills a Reply."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpucheck import checks
from gpucheck.checks.base import ANY_KERNEL, LAYER, OUTPUTS, CandidateCheck, Check, JointCheck
from gpucheck.host import cuda_driver
from gpucheck.library import engines
from gpucheck.model.case import Case
from gpucheck.model.conditions import FILLS, Conditions
from gpucheck.model.errors import Inapplicable, error_line, first_line
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.triton_hooks import cache_damage
from gpucheck.triton_hooks.launch_hooks import kernel_cache
from gpucheck.verify import digest
from gpucheck.verify.views import to_device
from gpucheck.worker import parcels
from gpucheck.worker.device import device_trace
from gpucheck.worker.device.benchmark import Stopwatch, steady
from gpucheck.worker.device.case_inspection import inspect
from gpucheck.worker.device.case_pass import DevicePasses, DeviceRuntime, Library, Outputs, timed
from gpucheck.worker.device.device_turns import DeviceTurns
from gpucheck.worker.device.guarded_memory import WatchedAllocation
from gpucheck.worker.device.launch_observer import Observer
from gpucheck.worker.device.memory_used import memory_of
from gpucheck.worker.device.placements import Binding
from gpucheck.worker.device.repeated_calls import RepeatedCalls
from gpucheck.worker.last_words import raised_from
from gpucheck.worker.memory_fills import FURTHER_FILL, SURE, depends_on_fill, due, fill_of, wants_another_pass
from gpucheck.worker.protocol import Allowance, Reply, Request, outputs_file

if TYPE_CHECKING:
    from gpucheck.worker.device.joint_group import JointGroup

OTHER_STREAM = 8  # passes that show whether a kernel on another stream waits: about one of eight shares the queue
LOCATE_SECONDS = 5.0  # of processor spent on finding the tensor whose surroundings are read
LOCATE_ENGINE_SECONDS = 30.0  # where an engine loads its weights anew each time


class Unusable(Exception):
    """A file of gpucheck itself cannot be read or written; this says nothing about the device."""


def _identity(device: torch.device) -> dict[str, Any]:
    """What tells a device from all others, as fields of a Reply."""
    if device.type != "cuda":
        return {"device": "cpu"}
    name = torch.cuda.get_device_name(device)
    uuid, bus = cuda_driver.identity(device.index or 0)
    return {"device": name, "gpu": f"{'MIG' if ' MIG ' in name else 'GPU'}-{uuid}" if uuid else "", "bus": bus}


class CaseExecutor(DevicePasses):
    """Runs whole cases on a device: as many passes as it takes, and what else is to be known of the outputs."""

    def __init__(
        self,
        binding: Binding,
        device: torch.device,
        library: Library,
        observer: Observer,
        turns: DeviceTurns | None = None,
    ) -> None:
        super().__init__(binding, device, library, observer)
        self._turns = turns or DeviceTurns("")
        self.joint_group: JointGroup | None = None  # of a process that runs joint cases
        self._stopwatch = Stopwatch(device, lambda: not self.poisoned_context())
        self._suspect: int | None = None  # number of the tensor around which a read was found last
        self._boxes: dict[str, parcels.Box] = {}  # shared memory that is open here, by path
        self._repeats: RepeatedCalls | None = None  # of the outputs that the case gave first
        self.identity = _identity(device)

    def run(self, request: Request) -> Reply:
        """Runs a case in memory filled with 0xFF and in memory filled with 0x00; more often if the outputs differ.

        A case with ``repeat`` runs at least that often; see :mod:`gpucheck.worker.memory_fills`.
        """
        reply = Reply("ran", **self.identity)
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
            layer = getattr(error, LAYER, "")
            reply.message = error_line(error) + explained + (f"; raised in the {layer}" if layer else "")
            reply.traceback, reply.source = traceback.format_exc(), self.observer.raised_at(error)
            reply.sticky = self.poisoned_context()
            reply.fatal = reply.sticky or out_of_memory(error)  # memory that leaked is free again in a fresh process
            self._salvage(error, reply, request)
        reply.launches = reply.launches or [asdict(launch) for launch in self.observer.take()]
        if isinstance(checks.load(request.case.check), CandidateCheck) and not reply.sticky:
            reply.memory = memory_of("candidate", self.device)
        reply.compiled = self.observer.log.compiled
        self.last, self._repeats, self.returned = None, None, []
        if (request.box or checks.load(request.case.check).needs_memory(request.case)) and not reply.sticky:
            self.let_go()
        return reply

    def _run(self, request: Request, reply: Reply) -> None:
        case, conditions = request.case, request.conditions
        check = checks.load(case.check)
        if request.suspect is not None:
            self._suspect = request.suspect
        if conditions.engine and not check.engine:  # which imports it by itself
            engines.load(self.library(), self.device)
        with timed(reply, "load"), needed(request.inputs):
            held = parcels.load(request.inputs, self._boxes, self.device)
            box = self._box(request.box)
        if conditions.warm_up:
            self.warm_up(check, case, held, conditions)
        with timed(reply, "prepare"):  # once: each pass places copies of these
            inputs = {name: to_device(value, self.device) for name, value in held.items()}
        passes, repeat = 0, conditions.repeat
        while due(repeat, passes) or self._agreed(
            wants_another_pass(repeat, passes, *reply.settled) or self._may_hide_order(conditions, reply, passes)
        ):
            first = not reply.digests
            known = self._kept_pass(check, inputs, reply, fill_of(passes), request)
            if first and self.observer.tuned:  # tells nothing of memory: it was launched on more than once
                reply.tuned, reply.by_fill = len(reply.digests), {}
                continue
            passes += 1
            if known:
                break
        reply.launches = [asdict(launch) for launch in self.observer.take()]
        depends = depends_on_fill(*reply.settled) and not conditions.late and conditions.concurrency == 1
        depends = depends and box is None  # large outputs have room for one pass
        if passes >= SURE and self._agreed(depends):
            with timed(reply, "locate"), self._turns.shared():
                for turn in range(max(1, case.ranks)):
                    self._locate(check, case, inputs, reply, conditions, searches=depends and turn == case.rank)
                self._fill_further(check, case, inputs, reply, request, keep=depends)
        if request.timed is not None and conditions.together:
            self._time_together(held, request.timed, reply)
        elif request.timed is not None and steady(reply):
            self._time(held, request.timed, reply)

    def _may_hide_order(self, conditions: Conditions, reply: Reply, passes: int) -> bool:
        """Whether chance may still hide a missing wait.

        A kernel ran on another stream while inputs came late or outputs were read at once, and all outputs are equal so
        far. Streams share the few queues of a GPU, and what is in one queue runs in order.
        """
        stressed = conditions.late or conditions.consumer == "prompt"
        if not stressed or passes >= OTHER_STREAM or len(set(reply.digests)) > 1:
            return False
        return any(launch.stream != reply.stream and not launch.away for launch in self.observer.take())

    def _kept_pass(self, check: Check, inputs: Any, reply: Reply, fill: int, request: Request) -> bool:
        """Makes a pass whose outputs are judged; says whether it is the first one and gave outputs that are known.

        What it placed and prepared is freed at its end, before the next one takes as much.
        """
        case, conditions, first = request.case, request.conditions, not reply.digests
        with self._turns.shared():
            with self._seen_by_driver(check, reply, first):
                prepared, launched = self.one_pass(check, case, inputs, reply, fill, conditions, watched=True)
            for outputs in launched:
                with timed(reply, "copy"):
                    copies = self._keep(outputs, reply, fill, request)
        if first and conditions.concurrency == 1:
            with timed(reply, "inspect"), self._turns.shared():
                self._inspect(check, case, prepared, copies, reply, conditions)
        known = request.known if first else {}
        return bool(known) and known == {name: digest.whole(held) for name, held in copies.items()}

    @contextmanager
    def _seen_by_driver(self, check: Check, reply: Reply, first: bool) -> Iterator[None]:
        """Around the first pass of a candidate whose kernels are not launched by Triton: what ran is taken down."""
        if not (first and self.device.type == "cuda" and isinstance(check, CandidateCheck) and check.traced):
            yield
            return
        names: list[str] = []
        with timed(reply, "trace"), device_trace.kernels_seen(self.device, names):
            yield
        reply.device_kernels = names

    def _agreed(self, wish: bool) -> bool:
        """Whether one more pass is made: as this rank wishes, or any of those that run a joint case with it."""
        return wish if self.joint_group is None else self.joint_group.agree(wish)

    def _locate(
        self, check: Check, case: Case, inputs: Any, reply: Reply, conditions: Conditions, *, searches: bool
    ) -> None:
        """Searches the tensor whose surroundings are read; the other ranks of a joint case make as many passes."""
        if searches:
            reply.sensitive = self._sensitive(check, case, inputs, reply, conditions)
            self._agreed(wish=False)
            return
        while self._agreed(wish=False):
            self._digest(check, case, inputs, (), conditions)

    def _time(self, inputs: Any, allowed: Allowance, reply: Reply) -> None:
        """Times further calls of the last pass; their launches are not counted."""
        assert self.last is not None
        work, prepared = self.last
        assert self._repeats is not None
        repeats, before = self._repeats, reply.calls
        call = partial(work.check.launch, work.case, prepared, work.runtime)
        wanted = allowed.clocked or _fell_back(reply)  # then its time tells what that costs
        turn = self._turns.alone() if wanted else self._turns.shared()
        with timed(reply, "speed"), self.observer.aside(), turn as undisturbed:
            if wanted and undisturbed:
                self._stopwatch.time(call, repeats.add, work.check, work.case, inputs, work.placed, allowed, reply)
            else:
                self._stopwatch.repeat(call, repeats.add, allowed, reply)
        if not reply.fatal:
            self.synchronize()  # what was launched meanwhile is known to have ended
            reply.blamed += [(ViolationKind.REPEATS_DIFFER, words) for words in repeats.differences(before)]

    def _time_together(self, inputs: Any, allowed: Allowance, reply: Reply) -> None:
        """Times the communication of a joint case, whatever this rank saw of it: all ranks make as many calls."""
        assert self.last is not None and self.joint_group is not None
        work, prepared = self.last
        assert isinstance(work.check, JointCheck)
        with (
            timed(reply, "speed"),
            self.observer.aside(),
            work.check.exchange(work.case, prepared, work.runtime) as call,
        ):
            if call is not None:
                reply.timings["call"] = self._stopwatch.together(call, self.joint_group, allowed)
                reply.cost = work.check.cost(work.case, inputs)

    def _keep(self, outputs: Outputs, reply: Reply, fill: int, request: Request) -> Outputs:
        """Notes the digest of one launch, writes its outputs if they must be judged, and returns copies of them.

        Outputs with the same bits as the first ones stay on the device: they would be judged the same.
        """
        if self._repeats is not None and self._repeats.same(outputs):
            self._take_down(reply.saved[0], reply, fill)
            return {}
        box = self._box(request.box)
        held = {} if box else on_host(outputs)
        whole = parcels.digest(outputs) if box else digest.whole(*held.values())
        if whole not in reply.saved:
            path = outputs_file(request.outputs[0], len(reply.saved))
            if not box or not reply.saved:  # there is room for one
                with needed(path):
                    parcels.save(outputs if box else held, path, box, hashed=False)
            reply.saved.append(whole)
        if self._repeats is None:
            if box is None and self.device.type == "cpu":  # the file is a copy where the outputs are
                with needed(path):
                    self._repeats = RepeatedCalls(parcels.load(path, self._boxes, self.device), own=True)
            else:
                self._repeats = RepeatedCalls(outputs)
        self._take_down(whole, reply, fill)
        return held

    def _box(self, path: str) -> parcels.Box | None:
        """The shared memory that outputs go to; None: they go into files."""
        if path and path not in self._boxes:
            self._boxes[path] = parcels.open_box(path, self.device, written=True)
        return self._boxes.get(path)

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
        with self.observer.aside(), watched, self.guard(conditions):
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

    def _sensitive(self, check: Check, case: Case, inputs: Any, reply: Reply, conditions: Conditions) -> str:
        """Finds the tensor in or around which the fill of memory changes the outputs, by filling some otherwise.

        Tries the tensor of the last such case first, since similar cases place tensors alike, and then halves the
        tensors: the later half first, since kernels read what was made from the inputs.
        """
        baseline = reply.settled[0][1]  # of the outputs where everything is filled with the second of ``FILLS``
        deadline = time.process_time() + (LOCATE_ENGINE_SECONDS if conditions.engine else LOCATE_SECONDS)

        def changes(*odd: int) -> bool:
            self._agreed(wish=True)
            return self._digest(check, case, inputs, odd, conditions) != baseline

        suspects = list(range(len(self.memory)))
        if self._suspect in suspects and changes(self._suspect):
            suspects = [self._suspect]
        elif case.ranks > 1 and not changes(*suspects):  # they follow what another rank's memory held
            return ""
        while len(suspects) > 1:
            if time.process_time() > deadline:
                return ""
            middle = len(suspects) // 2
            suspects = suspects[middle:] if changes(*suspects[middle:]) else suspects[:middle]
        if not suspects or changes() or not changes(*suspects):  # what comes and goes is not the fill's doing
            return ""
        (self._suspect,) = suspects
        reply.suspect = self._suspect
        return self.memory.words(self._suspect)

    def _fill_further(
        self, check: Check, case: Case, inputs: Any, reply: Reply, request: Request, *, keep: bool
    ) -> None:
        """Makes one more pass, in memory filled with a third byte, and may keep its outputs; they are not judged."""
        outputs = self._outputs(check, case, inputs, FURTHER_FILL, request.conditions)
        if not keep:
            return
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


def _fell_back(reply: Reply) -> bool:
    """Whether a kernel under test was launched never."""
    launched = {launch["kernel"] for launch in reply.launches if not launch["refused"]}
    return not all(
        launched & {*needed.kernels} or (launched and ANY_KERNEL in needed.kernels) for needed in reply.needed
    )


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
