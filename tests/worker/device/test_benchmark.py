"""Times on a stand-in device whose clock only goes where it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.record import Ceilings, Cost
from gpucheck.worker.device import benchmark
from gpucheck.worker.device.benchmark import ROUNDS, WARM, CudaClock, Stopwatch, seconds_of, steady
from gpucheck.worker.protocol import ALWAYS, BENCH, UNTIMED, Allowance, Reply, allowance
from tests.conftest import Synthetic


class Device:
    """A stream and a host, each with a clock; work is ahead of the host's clock or waits for it."""

    def __init__(self, call: float = 1e-3, launching: float = 1e-4) -> None:
        self.call_seconds, self.launching = call, launching
        self.stream, self.time = 0.0, 0.0
        self.calls = self.flushed = 0
        self.held: list[float] = []
        self.stumbles: dict[int, float] = {}  # number of a call -> s that the host takes longer for it
        self.slow: dict[int, float] = {}  # number of a call -> s that the device takes longer for it

    def work(self, seconds: float) -> None:
        self.stream = max(self.stream, self.time) + seconds

    def call(self) -> None:
        self.calls += 1
        self.time += self.launching + self.stumbles.get(self.calls, 0.0)
        self.work(self.call_seconds + self.slow.get(self.calls, 0.0))

    def flush(self) -> None:
        self.flushed += 1
        self.work(4e-5)

    def hold(self, seconds: float) -> None:
        self.held.append(seconds)
        self.work(seconds)

    def mark(self) -> float:
        self.work(0.0)
        return self.stream

    def between(self, first: float, last: float) -> float:
        return last - first

    def wait(self) -> None:
        self.time = max(self.time, self.stream)

    def host(self) -> float:
        return self.time


def test_each_call_is_looked_at_and_that_takes_no_time_of_its_own() -> None:
    device, seen = Device(call=1e-5, launching=4e-4), []

    def on_return(returned: Any) -> None:
        seen.append(returned)
        device.work(1.0)

    allowed = Allowance(repeats=5, seconds=60.0)
    assert seconds_of(lambda: device.call() or device.calls, device, allowed, on_return) == pytest.approx(1e-5)
    assert seen == list(range(1, 2 + allowed.repeats)), "the one that does not count as well"


def test_the_time_is_the_devices_and_not_the_hosts() -> None:
    device = Device(call=1e-5, launching=4e-4)
    assert seconds_of(device.call, device, ALWAYS) == pytest.approx(1e-5)
    assert device.calls == device.flushed == 1 + ALWAYS.repeats, "one does not count; the cache is flushed before each"


def test_repeats_are_held_back_in_batches_that_a_stream_can_hold() -> None:
    device = Device(call=1e-5, launching=4e-4)
    seconds_of(device.call, device, BENCH)
    assert device.calls == 1 + BENCH.repeats
    assert device.held[0] == 0 and max(device.held) == pytest.approx(1.5 * 5 * 4e-4)
    device = Device(call=1e-5, launching=2e-3)
    seconds_of(device.call, device, BENCH)
    assert max(device.held[2:]) == pytest.approx(1.5 * 2e-3), "one at a time where the host takes that long"


def test_the_first_call_does_not_count_and_the_median_decides() -> None:
    device = Device()
    device.slow = {1: 5.0, 3: 1.0}
    assert seconds_of(device.call, device, ALWAYS) == pytest.approx(1e-3)
    device = Device()
    device.stumbles = {2: 0.5}
    assert seconds_of(device.call, device, ALWAYS) == pytest.approx(1e-3)
    assert device.calls == 6, "a host that stumbles once costs no repeats"


@pytest.mark.parametrize(
    ("call", "calls"), [(1e-3, 6), (4e-3, 4), (9e-3, 2), (5e-2, 2)], ids=["short", "fewer", "once", "too long"]
)
def test_what_is_allowed_bounds_the_repeats(call: float, calls: int) -> None:
    device = Device(call=call)
    assert seconds_of(device.call, device, ALWAYS) == pytest.approx(call)
    assert device.calls == calls and device.time < 2.5 * max(ALWAYS.seconds, call)


def step_of(plan: Any, **conditions: Any) -> Any:
    return replace(plan.steps[0], conditions=Conditions(**conditions))


def test_only_usual_conditions_on_gpus_are_timed(synthetic: Synthetic) -> None:
    plan = synthetic.plan(ranks=2)
    assert allowance(plan, step_of(plan), "") is ALWAYS
    assert allowance(plan, step_of(plan), "", compared=False) is UNTIMED, "ranks are compared by few steps"
    assert allowance(replace(plan, nproc=1), step_of(plan), "") is UNTIMED, "there is no time to compare it with"
    assert allowance(plan, step_of(plan, placement="visible", process_group="initialised", repeat=7), "") is ALWAYS
    assert allowance(replace(plan, bench=True), step_of(plan), "", compared=False) is BENCH
    assert allowance(replace(plan, device="cpu", bench=True), step_of(plan, placement="cpu"), "") is None
    joint = step_of(plan, process_group=TOGETHER)
    assert allowance(plan, joint, "") is None, "each rank would have to make as many calls"
    assert allowance(replace(plan, bench=True), joint, "") is BENCH
    assert allowance(replace(plan, device="cpu", bench=True), joint, "") is BENCH
    assert allowance(replace(plan, bench=True), step_of(plan, process_group=TOGETHER, stream="side"), "") is None
    assert allowance(replace(plan, bench=True), joint, "repeat") is None
    assert allowance(plan, step_of(plan), "repeat") is None
    assert allowance(replace(plan, debug=True), step_of(plan), "") is None
    away = ("unpinned", "context0", "peer", "threads", "threads-unpinned", "sequential", "sequential-unpinned")
    unusual: list[dict[str, Any]] = [{"placement": name} for name in away]
    unusual += [{"late": True}, {"consumer": "prompt"}, {"stream": "side"}, {"concurrency": 2}, {"cache": "cold"}]
    unusual += [{"warm_up": True}, {"synchronised": True}, {"guarded": True}, {"alone": True}, {"swap": "rank"}]
    assert not [each for each in unusual if allowance(plan, step_of(plan, **each), "")]


def test_a_case_is_steady_where_passes_agree_and_memory_is_kept() -> None:
    assert steady(Reply("ran", digests=["a", "a"]))
    assert not steady(Reply("ran", digests=["a", "b"]))
    assert not steady(Reply("ran", digests=["a", "a"], guards=["4 bytes"]))
    assert not steady(Reply("error", digests=["a", "a"])) and not steady(Reply("ran"))


class Check:
    """A check that knows what it costs and how torch does it."""

    def __init__(self, device: Device) -> None:
        self.device, self.plain_calls = device, 0
        self.error: Exception | None = None

    def cost(self, case: Any, inputs: Any) -> Cost:
        return Cost(8.0, float(inputs))

    def plain(self, case: Any, placed: Any) -> Any:
        if self.error:
            raise self.error

        def call() -> None:
            self.plain_calls += 1
            self.device.work(placed * 1e-3)

        return call


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stopwatch on a stand-in device, and what it says of a call."""
    device = Device()
    check = Check(device)
    made = SimpleNamespace(device=device, check=check, usable=True, entered=[], ceilings=0, looked=[])

    @contextmanager
    def current(index: Any) -> Iterator[None]:
        made.entered.append(index)
        yield

    def measure(*_: Any) -> Ceilings:
        made.ceilings += 1
        return Ceilings(1e12, 2e12)

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(benchmark, "CudaClock", lambda index: device)
    monkeypatch.setattr(benchmark, "ceilings", measure)
    stopwatch = Stopwatch(torch.device("cuda", 1), lambda: made.usable)

    def time(allowed: Allowance = BENCH, call: Any = device.call, **seconds: float) -> Reply:
        made.reply = Reply("ran", seconds=seconds)
        stopwatch.time(call, made.looked.append, check, None, 4, 7, allowed, made.reply)
        return made.reply

    made.time = time
    return made


def test_usually_only_the_call_is_timed(watch: Any) -> None:
    reply = watch.time(ALWAYS)
    assert reply.timings == {"call": pytest.approx(1e-3)} and reply.cost == Cost(8.0, 4.0)
    assert reply.ceilings is None and not watch.check.plain_calls and watch.entered == [torch.device("cuda", 1)]


def test_at_length_plain_torch_and_once_the_ceilings_are_measured_too(watch: Any) -> None:
    first, second = watch.time(), watch.time()
    assert first.timings == second.timings == {"call": pytest.approx(1e-3), "plain": pytest.approx(7e-3)}
    assert first.ceilings == Ceilings(1e12, 2e12) and second.ceilings is None and watch.ceilings == 1


def test_a_call_that_takes_very_long_is_not_made_again(watch: Any) -> None:
    assert watch.time(ALWAYS, kernel=3.0).timings == {"call": 3.0} and not watch.device.calls
    assert watch.time(ALWAYS, kernel=0.15).timings == {"call": pytest.approx(1e-3)}, (
        "a host that stumbled is no such call"
    )


def failing() -> None:
    raise RuntimeError("CUDA out of memory")


def test_what_cannot_be_timed_is_left_out(watch: Any) -> None:
    reply = watch.time(call=failing)
    assert (reply.timings, reply.cost, reply.ceilings, reply.fatal) == ({}, None, None, False)
    watch.check.error = RuntimeError("CUDA out of memory")
    reply = watch.time()
    assert list(reply.timings) == ["call"] and reply.ceilings is not None and not reply.fatal


def test_a_call_that_breaks_the_context_is_a_failure_of_the_code_under_test(watch: Any) -> None:
    watch.usable = False
    with pytest.raises(RuntimeError, match="out of memory"):
        watch.time(call=failing)


def test_plain_torch_that_breaks_the_context_costs_the_process_and_no_verdict(watch: Any) -> None:
    watch.usable, watch.check.error = False, RuntimeError("illegal address")
    reply = watch.time()
    assert reply.fatal and list(reply.timings) == ["call"] and reply.status == "ran" and not watch.ceilings


class Events:
    """torch.cuda as far as a clock uses it, on the CPU."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        return SimpleNamespace(record=lambda stream: self.told.append(("record", stream)), elapsed_time=lambda _: 2.5)

    def install(self, monkeypatch: pytest.MonkeyPatch, cache: dict[str, int]) -> None:
        monkeypatch.setattr(torch.cuda, "Event", self.Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.told.append(("wait", str(device))))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.told.append(("sleep", cycles)))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**cache))


@pytest.mark.parametrize(("cache", "size"), [({"L2_cache_size": 1000}, 2000), ({}, 256 << 20)])
def test_a_gpus_clock(monkeypatch: pytest.MonkeyPatch, cache: dict[str, int], size: int) -> None:
    events = Events()
    events.install(monkeypatch, cache)
    clock = CudaClock(torch.device("cpu"))
    assert clock._memory.nbytes == size
    clock._memory.fill_(1)
    clock.flush()
    assert not clock._memory.any()
    first = clock.mark()
    clock.hold(0.001)
    clock.wait()
    assert clock.between(first, clock.mark()) == pytest.approx(0.0025), "events count milliseconds"
    record = ("record", "stream of cpu")
    assert events.told == [record, ("sleep", 2_000_000), ("wait", "cpu"), record]


def test_ceilings_count_both_sides_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SIDE", 16)
    monkeypatch.setattr(benchmark, "COPIED", 1000)
    quickest = iter((2.0, 4.0))
    monkeypatch.setattr(benchmark, "_quickest", lambda call, clock: (call(), next(quickest))[1])
    found = benchmark.ceilings(torch.device("cpu"), Device())
    assert found == Ceilings(flops=2 * 16**3 / 2.0, bytes=2 * 1000 / 4.0)


def test_the_quickest_of_several_tries_is_the_ceiling() -> None:
    device = Device()
    device.slow = {n: 0.1 for n in range(2, 12) if n != 7}
    assert benchmark._quickest(device.call, device) == pytest.approx(1e-3)


class Alike:
    """Ranks that all take as long as the slowest of them says."""

    def __init__(self, slowest: float) -> None:
        self.slowest, self.met = slowest, 0

    def meet(self, device: Any) -> None:
        self.met += 1

    def largest(self, value: float) -> float:
        return self.slowest


@pytest.mark.parametrize(("slowest", "calls"), [(1.0, 1), (0.01, 6), (1e-9, 100)])
def test_ranks_make_as_many_calls_together_however_long_one_of_them_takes(slowest: float, calls: int) -> None:
    group: Any = Alike(slowest)
    made: list[int] = []
    stopwatch = Stopwatch(torch.device("cpu"), lambda: True)
    seconds = stopwatch.together(lambda: made.append(group.met), group, Allowance(30, 0.2))
    assert seconds > 0
    assert [made.count(round) for round in range(1, group.met + 1)] == [1] * WARM + [calls] * ROUNDS
