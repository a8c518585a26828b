"""A process that holds a candidate and nothing else, and answers the calls that its supervisor asks for one by one.

Whatever outputs are read and timed with is bound before the candidate is loaded: one that replaces functions of torch
or gpucheck changes what it calls itself, and not what it is judged by.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpucheck import checks
from gpucheck.model.case import Case
from gpucheck.model.conditions import FILLS
from gpucheck.model.errors import first_line
from gpucheck.worker import parcels
from gpucheck.worker.device import launch_modes, stream_stress
from gpucheck.worker.device.case_pass import DeviceRuntime
from gpucheck.worker.device.executor import CaseExecutor, out_of_memory
from gpucheck.worker.device.gpu_process import Maker, Process, own_device
from gpucheck.worker.device.guarded_memory import WatchedAllocation
from gpucheck.worker.device.launch_modes import Launches
from gpucheck.worker.device.timed_calls import timed_steps
from gpucheck.worker.protocol import AFTER, BASELINE, FETCH, GO, PLACE, Call, Reply, Request, Setup

Outputs = dict[str, Tensor]


class SingleCalls(Process):
    """Answers requests for single calls; the first one makes the candidate."""

    def __init__(self, setup: Setup, maker: Maker) -> None:
        launches = launch_modes.install(setup.launches)
        executor = maker.executor(own_device(setup))
        self.run = _answering(executor, launches, setup.calls == BASELINE)  # type: ignore[method-assign,assignment]

    def run(self, request: Request) -> list[Reply]:
        raise AssertionError("each process has its own, which no other class can take the place of")


def _answering(executor: CaseExecutor, launches: Launches, baseline: bool) -> Callable[[Request], list[Reply]]:
    """What answers requests, with all that it needs bound now."""
    boxes: dict[str, parcels.Box] = {}  # shared memory that is open here, by path
    load = partial(parcels.load, boxes=boxes, device=executor.device, mapped=False)
    call_of, copy_out = _calling(executor, launches, load, baseline), _reader()
    make, save, fields, words, stack = Reply, torch.save, asdict, first_line, traceback.format_exc
    open_box, put = partial(_box, boxes, executor.device), partial(parcels.save, hashed=False)
    poisoned, let_go, start, taken, memory_ran_out = (
        executor.poisoned_context,
        executor.let_go,
        executor.observer.start,
        executor.observer.take,
        out_of_memory,
    )

    def answer(request: Request) -> list[Reply]:
        assert request.call is not None
        reply = make("ran", **executor.identity)
        start()
        try:
            held = load(request.call.inputs) if request.call.inputs else {}
            outputs = call_of(request.case, request.inputs, held, request.call, reply)
            if request.call.step not in (PLACE, GO):
                box = open_box(request.box)
                if box is None:
                    save(copy_out(outputs), request.outputs[0])
                else:
                    put(outputs, request.outputs[0], box)
                    if not request.call.step:  # between timed calls fresh memory would take time
                        let_go()
        except Exception as error:
            reply.status, reply.message, reply.traceback = "error", f"{type(error).__name__}: {words(error)}", stack()
            reply.sticky = poisoned()
            reply.fatal = reply.sticky or memory_ran_out(error)
        reply.launches = [fields(launch) for launch in taken()]
        return [reply]

    return answer


def _box(boxes: dict[str, parcels.Box], device: torch.device, path: str) -> parcels.Box | None:
    """The shared memory that outputs go to; None: they go into files."""
    if path and path not in boxes:
        boxes[path] = parcels.open_box(path, device, written=True)
    return boxes.get(path)


def _reader() -> Callable[[Outputs], Outputs]:
    """Copies outputs to the host, dense."""
    detach, to, dense = Tensor.detach, Tensor.to, Tensor.contiguous
    return lambda outputs: {name: dense(to(detach(value), "cpu")) for name, value in outputs.items()}


def _calling(
    executor: CaseExecutor, launches: Launches, load: Callable[[str], Outputs], baseline: bool
) -> Callable[..., Outputs]:
    """What makes a call. The first one prepares the candidate, when launches already do what the process is for."""
    steps, ordered, place = timed_steps(executor.device), _ordering(executor), _placing(executor.device)
    plain, no_modes_left = _plain_outputs(), _no_modes_left()
    synchronize, stream = executor.synchronize, executor.current_stream
    choose, count, watched, memory = (
        launches.choose,
        launches.count,
        WatchedAllocation,
        executor.memory,
    )
    check: Any = None
    prepared: Any = None
    before: tuple[Outputs, Outputs] = {}, {}  # inputs and outputs of the last call

    def call(case: Case, given: str, held: Outputs, asked: Call, reply: Reply) -> Outputs:
        nonlocal check, prepared, before
        if check is None:
            check = checks.load(case.check)
            memory.reset(FILLS[0])
            own = {name: value for name, value in load(given).items() if name not in held}  # a call brings its inputs
            inputs = {name: memory.place(value) for name, value in own.items()}
            prepared = (check.baseline if baseline else check.prepare)(case, inputs, DeviceRuntime(executor, reply))
        if asked.step == PLACE:
            before = {}, {}
            steps.place(held)
            return {}
        if asked.step == FETCH:
            return steps.fetch()
        memory.reset(FILLS[0])  # the same in each call: what nobody writes is no other answer
        if asked.step == GO:
            begun = count()
            choose(asked.launches)
            done = steps.go(lambda given: plain(check.call(prepared, given)), asked.key, asked.held)
            reply.timings["call"], reply.bit_sum = done
            no_modes_left()
            reply.launched = count() - begun
            return {}
        values = place(held, before[0] if asked.in_place else {})
        synchronize()
        reply.stream, begun = stream(), count()
        choose(asked.launches)

        def in_watched_memory() -> Outputs:
            with watched(memory):
                outputs: Outputs = plain(check.call(prepared, values))
                return outputs

        outputs = ordered(in_watched_memory, values, asked)
        no_modes_left()
        synchronize()
        reply.launched = count() - begun
        before = values, outputs
        return {**outputs, **{AFTER + name: value for name, value in values.items() if asked.compared}}

    return call


def _plain_outputs() -> Callable[[Outputs], Outputs]:
    """Lets outputs through that are tensors and nothing more: a subclass could put work off until they are read."""
    kinds, kind_of, error = (Tensor, torch.nn.Parameter), type, TypeError

    def plain(outputs: Outputs) -> Outputs:
        for name, value in outputs.items():
            if kind_of(value) not in kinds:
                raise error(f"{name} is a {kind_of(value).__name__}, expected a torch.Tensor and no subclass of it")
        return outputs

    return plain


def _no_modes_left() -> Callable[[], None]:
    """Raises where a candidate has left a mode of torch on, which takes part in all that is done with its outputs."""
    own: Any = torch._C
    stacks, error = (own._len_torch_function_stack, own._len_torch_dispatch_stack), RuntimeError

    def check() -> None:
        if any(stack() for stack in stacks):
            raise error("the call left a mode of torch on that takes part in all further operations")

    return check


def _placing(device: torch.device) -> Callable[[Outputs, Outputs], Outputs]:
    """What puts inputs on the device: in the memory of those that are there, else in memory of their own."""
    to, copy = Tensor.to, Tensor.copy_

    def place(held: Outputs, there: Outputs) -> Outputs:
        placed = {}
        for name, value in held.items():
            target = there.get(name)
            if target is None or (target.shape, target.dtype) != (value.shape, value.dtype):
                placed[name] = to(value, device, copy=True)
            else:
                placed[name] = copy(target, value)
        return placed

    return place


def _ordering(executor: CaseExecutor) -> Callable[[Callable[[], Outputs], Outputs, Call], Outputs]:
    """What makes a call between its producer and its consumer, both on the current stream; see :mod:`stream_stress`."""
    hold_back, reader, wait, reserve = (
        stream_stress.hold_back,
        stream_stress.reader,
        executor.synchronize,
        executor.memory.reserve,
    )

    def ordered(call: Callable[[], Outputs], inputs: Outputs, asked: Call) -> Outputs:
        if not asked.late and not asked.prompt:
            return call()
        rehearsed = call()  # nothing may be left to compile or to fill
        wait()
        reserve()
        read = reader(rehearsed) if asked.prompt else dict[str, Tensor]
        late = [value for value in inputs.values() if value.is_floating_point()] if asked.late else []
        produce = hold_back(late, executor.device) if late else None
        wait()
        if produce is not None:
            produce()
        return read(call())

    return ordered
