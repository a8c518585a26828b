"""Timed calls of a candidate: it cannot see their inputs before time runs, and their outputs are taken when it stops.

Inputs come under a seal, which is broken on the caller's stream right before the call, and outputs are copied on that
stream right behind it. What a call leaves to another stream or to a thread either waits for its inputs and is waited
for, and so lies between the two events, or its answer is wrong. Everything used here is taken from below Python before
a candidate is loaded: one that replaces functions or classes of torch changes what it calls itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpucheck.verify.digest import integers
from gpucheck.verify.views import to_device
from gpucheck.worker.device.benchmark import AHEAD, CYCLES, CudaClock
from gpucheck.worker.sealed_inputs import bit_sum, mask_of, sealable, xor

Outputs = dict[str, Tensor]
CallOf = Callable[[Outputs], Outputs]

TAIL = 0.5e-3  # s; a device that is busy for longer than this behind the outputs' copies has work on other streams


@dataclass(frozen=True)
class Steps:
    """The steps of a timed call."""

    place: Callable[[Outputs], None]  # puts sealed inputs on the device
    go: Callable[[CallOf, int, bool], tuple[float, int]]  # breaks the seal and calls; s on the device, sum of outputs
    fetch: Callable[[], Outputs]  # what the outputs were when the call had ended


def timed_steps(device: torch.device) -> Steps:
    """The steps on a device, with all that they use bound now."""
    to, empty, detach, clone = Tensor.to, torch.empty_like, Tensor.detach, Tensor.clone
    bits, mask, can_be, seal, summed, poison = integers, mask_of, sealable, xor, bit_sum, Tensor.fill_
    timed = _on_gpu(device) if device.type == "cuda" else _on_cpu
    moved, boolean = to_device, torch.bool
    staged: Outputs = {}  # under their seal
    whole: Outputs = {}  # those that cannot be sealed
    taken: Outputs = {}

    def place(held: Outputs) -> None:
        staged.clear()
        taken.clear()
        whole.clear()
        for name, value in held.items():
            if can_be(value):
                staged[name] = to(value, device, copy=True)
            else:
                whole[name] = moved(value, device)

    def go(call: CallOf, key: int, held: bool) -> tuple[float, int]:
        broken = {name: empty(value) for name, value in staged.items()}
        for value in broken.values():
            poison(bits(value), -1 if value.dtype != boolean else 1)

        def unseal() -> None:
            for name, value in broken.items():
                seal(bits(staged[name]), mask(value, key), out=bits(value))

        def take(outputs: Outputs) -> None:
            taken.clear()
            taken.update({name: clone(detach(value)) for name, value in outputs.items()})

        seconds = timed(unseal, lambda: call({**broken, **whole}), take, held)
        return seconds, summed(taken)

    return Steps(place, go, lambda: dict(taken))


def _on_cpu(
    unseal: Callable[[], None], call: Callable[[], Outputs], take: Callable[[Outputs], None], held: bool
) -> float:
    unseal()
    take(call())
    return 0.0


def _on_gpu(device: torch.device) -> Callable[..., float]:
    """What times a call by events on the stream that was the current one when this was called."""
    own: Any = torch._C
    event = getattr(own, "_CudaEventBase", torch.cuda.Event)
    first, last, copied, idle = (event(enable_timing=True) for _ in range(4))
    stream, flush = torch.cuda.current_stream(device), CudaClock(device).flush
    set_device, set_stream, sleep = own._cuda_setDevice, own._cuda_setStream, own._cuda_sleep
    wait_for_device, host = own._cuda_synchronize, time.perf_counter
    number, stream_is = device.index, (stream.stream_id, stream.device_index, stream.device_type)
    launching: list[float] = []  # s that the host took; the least counts, since a call that waits waits for the delay

    def settle() -> None:
        """Whatever current device and stream a candidate has left behind."""
        set_device(number)
        set_stream(stream_id=stream_is[0], device_index=stream_is[1], device_type=stream_is[2])

    def timed(
        unseal: Callable[[], None], call: Callable[[], Outputs], take: Callable[[Outputs], None], held: bool
    ) -> float:
        settle()
        wait_for_device()
        if held:
            sleep(int(AHEAD * min(launching, default=0.0) * CYCLES))
        unseal()
        flush()  # of the inputs too: those of a call that counts come from memory
        first.record(stream)
        began = host()
        outputs = call()
        launching.append(host() - began)
        settle()
        last.record(stream)
        take(outputs)
        copied.record(stream)
        copied.synchronize()
        wait_for_device()
        idle.record(stream)
        idle.synchronize()
        seconds = first.elapsed_time(last) / 1000
        behind = copied.elapsed_time(idle) / 1000
        return seconds + behind if behind > TAIL else seconds

    return timed
