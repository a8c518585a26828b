"""How long calls take on a GPU: that of the code under test, plain torch beside it, and what the GPU can do at best.

Times are the device's own, between events on its stream. Before each timed call the L2 cache is flushed, and a delay
holds the stream back until the host has launched what follows, so that neither what the last call left in the cache
nor the speed of the host shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import torch

from gpucheck.model.record import Ceilings
from gpucheck.worker.protocol import Allowance

if TYPE_CHECKING:
    from gpucheck.checks.base import Check
    from gpucheck.model.case import Case
    from gpucheck.worker.device.joint_group import JointGroup
    from gpucheck.worker.protocol import Reply

L2_TIMES = 2  # size of what is written to flush the L2 cache, in sizes of that cache
FLUSHED = 256 << 20  # bytes; where the size of the cache is not known
CYCLES = 2.0e9  # of the SM clock a second, at most: a delay at a lower clock only lasts longer
AHEAD = 1.5  # length of a delay in times of what the host took to launch the same before
BATCH = 5  # calls behind one delay
LONG = 10  # times what is allowed; a pass that took longer is not made again for its time
HELD = 0.003  # s of launching behind one delay: more launches than a stream holds would make the host wait

WARM = 2  # calls of all ranks before any is timed
ROUNDS = 3  # of calls that ranks make together; the median counts
MOST_TOGETHER = 100  # calls of a round

SIDE = 8192  # of the square bf16 product that is the ceiling of compute
COPIED = 512 << 20  # bytes; of the copy that is the ceiling of memory
TRIES = 10  # of each, the quickest counts

Call = Callable[[], Any]
OnReturn = Callable[[Any], None]
"""Takes what a call returned, at no time of the device that counts."""


class Clock(Protocol):
    """A device with a clock of its own."""

    def flush(self) -> None:
        """Empties the cache."""

    def hold(self, seconds: float) -> None:
        """Keeps the stream busy, at least so long; returns at once."""

    def mark(self) -> Any:
        """A mark that the stream will reach after everything launched so far."""

    def between(self, first: Any, last: Any) -> float:
        """Seconds of the device between two marks that it has reached."""

    def wait(self) -> None:
        """Returns when the device has nothing left to do."""

    def host(self) -> float:
        """The host's clock, in s."""


class CudaClock:
    """The clock of the current stream of a GPU, which is the current device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        size = L2_TIMES * int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
        self._memory = torch.empty(size or FLUSHED, dtype=torch.uint8, device=device)
        self._clear = self._memory.zero_

    def flush(self) -> None:
        self._clear()

    def hold(self, seconds: float) -> None:
        torch.cuda._sleep(int(seconds * CYCLES))

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        return first.elapsed_time(last) / 1000

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)

    def host(self) -> float:
        return time.perf_counter()


class HostClock:
    """The clock of the host, for what runs on the CPU: a call has ended when it returns."""

    def flush(self) -> None:
        """Leaves the cache as it is."""

    def hold(self, seconds: float) -> None:
        """There is no stream to keep busy."""

    def mark(self) -> float:
        return time.perf_counter()

    def between(self, first: float, last: float) -> float:
        return last - first

    def wait(self) -> None:
        """Nothing goes on behind a call that has returned."""

    def host(self) -> float:
        return time.perf_counter()


def seconds_of(call: Call, clock: Clock, allowed: Allowance, on_return: OnReturn | None = None) -> float:
    """Median time of a call on the device, in s.

    The first call does not count: memory may still have to be had in it. The second one always does.
    """
    launching, first = _batch(call, clock, 1, 0.0, on_return)
    again, took = _batch(call, clock, 1, launching, on_return)
    launching = max(min(launching, again), 1e-6)  # a host that stumbled once says nothing
    repeats = min(allowed.repeats, int(allowed.seconds / (launching + min(*first, *took))) - 1)
    batch = max(1, min(BATCH, int(HELD / launching)))
    while len(took) < repeats:
        took += _batch(call, clock, min(batch, repeats - len(took)), launching, on_return)[1]
    return median(took)


def _batch(
    call: Call, clock: Clock, count: int, launching: float, on_return: OnReturn | None
) -> tuple[float, list[float]]:
    """What the host took to launch so many calls, and the device for each.

    Args:
        launching: s that the host needs for one of them; the stream is held back so long.
    """
    clock.hold(AHEAD * launching * count)
    begin = clock.host()
    marks = [_timed(call, clock, on_return) for _ in range(count)]
    launched = clock.host() - begin
    clock.wait()
    return launched, [clock.between(*pair) for pair in marks]


def _timed(call: Call, clock: Clock, on_return: OnReturn | None = None) -> tuple[Any, Any]:
    clock.flush()
    first = clock.mark()
    returned = call()
    last = clock.mark()
    if on_return is not None:
        on_return(returned)
    return first, last


def ceilings(device: torch.device, clock: Clock) -> Ceilings:
    """What the GPU reaches in a large bf16 product and in a large copy, in plain torch."""
    return Ceilings(flops=2 * SIDE**3 / _product(device, clock), bytes=2 * COPIED / _copy(device, clock))


def _product(device: torch.device, clock: Clock) -> float:
    a, b, product = (torch.empty(SIDE, SIDE, dtype=torch.bfloat16, device=device) for _ in range(3))
    a.normal_()  # zeros would take less power and run at a higher clock than any numbers
    b.normal_()
    return _quickest(lambda: torch.matmul(a, b, out=product), clock)


def _copy(device: torch.device, clock: Clock) -> float:
    source, target = (torch.zeros(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    return _quickest(lambda: target.copy_(source), clock)


def _quickest(call: Call, clock: Clock) -> float:
    call()
    marks = [_timed(call, clock) for _ in range(TRIES)]
    clock.wait()
    return min(clock.between(*pair) for pair in marks)


class Stopwatch:
    """Times the calls of a process on its GPU."""

    def __init__(self, device: torch.device, usable: Callable[[], bool]) -> None:
        """``usable`` says whether the device still works."""
        self._device, self._usable = device, usable
        self._clock: Clock | None = None
        self._asked = False  # for the ceilings

    def time(
        self,
        call: Call,
        on_return: OnReturn,
        check: Check,
        case: Case,
        inputs: Any,
        placed: Any,
        allowed: Allowance,
        reply: Reply,
    ) -> None:
        """Adds to a reply how long the call under test takes and what it has to do.

        Where more is allowed, also plain torch and, once, the ceilings. Whatever fails is left out.

        Args:
            call: the call under test, on operands that are prepared.
            on_return: is given what each call returned.
            inputs: of the case, on the CPU.
            placed: the same on the device.

        Raises:
            Exception: the call under test broke the CUDA context.
        """
        with torch.cuda.device(self._device):
            with self._optional(reply, under_test=True):
                known = reply.seconds.get("kernel", 0.0)
                long = known > LONG * allowed.seconds
                reply.timings["call"] = known if long else seconds_of(call, self._ready(), allowed, on_return)
                reply.cost = check.cost(case, inputs)
            if not allowed.thorough or "call" not in reply.timings:
                return
            with self._optional(reply):
                plain = check.plain(case, placed)
                if plain is not None:
                    reply.timings["plain"] = seconds_of(plain, self._ready(), allowed)
            if not self._asked and not reply.fatal:
                self._asked = True
                with self._optional(reply):
                    reply.ceilings = ceilings(self._device, self._ready())

    def together(self, call: Call, group: JointGroup, allowed: Allowance) -> float:
        """How long a call takes that all ranks make at once, in s; all of them get to this at the same time.

        They meet, make many calls one after the other, and divide; the median of ROUNDS such rounds counts.
        """
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            return self._together(call, group, allowed, self._ready())

    def _together(self, call: Call, group: JointGroup, allowed: Allowance, clock: Clock) -> float:
        longest = 0.0
        for _ in range(WARM):  # the last of these says how many are made
            group.meet(self._device)
            begin = clock.host()
            call()
            clock.wait()
            longest = group.largest(clock.host() - begin)
        count = max(1, min(MOST_TOGETHER, int(allowed.seconds / ROUNDS / max(longest, 1e-6))))
        took = []
        for _ in range(ROUNDS):
            group.meet(self._device)
            first = clock.mark()
            for _ in range(count):
                call()
            last = clock.mark()
            clock.wait()
            took.append(clock.between(first, last) / count)
        return median(took)

    def repeat(self, call: Call, on_return: OnReturn, allowed: Allowance, reply: Reply) -> None:
        """Makes as many calls as :meth:`time` would, without a clock: what they return is held against what is judged.

        Raises:
            Exception: the call under test broke the CUDA context.
        """
        known = reply.seconds.get("kernel", 0.0)
        if known > LONG * allowed.seconds:
            return
        most = max(2, min(1 + allowed.repeats, int(allowed.seconds / max(known, 1e-6))))
        begin = time.perf_counter()
        with torch.cuda.device(self._device), self._optional(reply, under_test=True):
            for made in range(most):
                if made >= 2 and time.perf_counter() - begin > allowed.seconds:
                    break
                on_return(call())

    def _ready(self) -> Clock:
        if self._clock is None:
            self._clock = CudaClock(self._device) if self._device.type == "cuda" else HostClock()
        return self._clock

    @contextmanager
    def _optional(self, reply: Reply, *, under_test: bool = False) -> Iterator[None]:
        """Lets what fails inside be missing; a device that no longer works after it is told."""
        try:
            yield
        except Exception:
            if self._usable():
                return
            if under_test:
                raise
            reply.fatal = True


def steady(reply: Reply) -> bool:
    """Whether the passes of a case agreed with each other and kept to their memory, so that its time means anything."""
    return reply.status == "ran" and len(set(reply.digests)) == 1 and not reply.guards
