"""Who runs when: every datapath as long as the others, until it was enough, and never while others want the GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpucheck.tools.screen import screen_process
from gpucheck.tools.screen.screen_process import Turns

TILES = {"short": 10, "long": 10}
SECONDS = {"short": 1.0, "long": 3.0}


class Clock:
    """Time that passes when something waits or runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Gpu:
    """A device of two multiprocessors that notes what it was told."""

    programs = 2

    def __init__(self, clock: Clock, busy: list[tuple[float, float]]) -> None:
        self.clock, self.busy, self.events = clock, busy, list[tuple[str, str, float]]()
        self.waiting = 0
        self.deepest = 0

    def launch(self, ready: Any) -> Any:
        self.events.append(("launch", ready.path.name, self.clock.now))
        self.waiting += 1
        self.deepest = max(self.deepest, self.waiting)
        return SimpleNamespace(ready=ready, groups=1, start=0)

    def finish(self, launched: Any) -> dict[str, Any]:
        self.waiting -= 1
        seconds = SECONDS[launched.ready.path.name]
        self.clock.now += seconds
        digests = np.zeros(2, np.int64)
        return {"seconds": seconds, "digests": digests, "multiprocessors": np.arange(2), "details": {}}

    def others(self) -> bool:
        return any(begin <= self.clock.now < end for begin, end in self.busy)


class Silent:
    """A connection that keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send_bytes(self, content: bytes) -> None:
        self.sent.append(content)


def ran(
    monkeypatch: pytest.MonkeyPatch, seconds: float, tiles: int = 0, busy: list[tuple[float, float]] | None = None
) -> tuple[Gpu, Turns]:
    clock = Clock()
    monkeypatch.setattr(screen_process, "time", clock)
    gpu = Gpu(clock, busy or [])
    ready: Any = {name: SimpleNamespace(path=SimpleNamespace(name=name, tiles=TILES[name])) for name in TILES}
    device: Any = gpu
    connection: Any = Silent()
    turns = Turns(device, ready, connection, None if busy is None else gpu.others)
    turns.run(seconds, tiles)
    return gpu, turns


def launches(gpu: Gpu) -> list[str]:
    return [name for event, name, _ in gpu.events if event == "launch"]


def test_each_datapath_gets_as_much_time_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, turns = ran(monkeypatch, 60.0)
    assert turns._spent["short"] == pytest.approx(turns._spent["long"], abs=3.0)
    assert launches(gpu).count("short") == pytest.approx(3 * launches(gpu).count("long"), abs=3)


def test_each_datapath_runs_however_short_the_time_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, _ = ran(monkeypatch, 0.001)
    assert launches(gpu) == ["short", "long"]


def test_a_screen_until_a_power_ends_when_every_multiprocessor_ran_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, turns = ran(monkeypatch, 1e9, tiles=95)
    assert {name: turns._fewest(name) // TILES[name] for name in TILES} == pytest.approx(
        {"short": 10, "long": 10}, abs=1
    )
    assert min(turns._fewest(name) for name in TILES) >= 95


def test_the_next_launch_waits_behind_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, _ = ran(monkeypatch, 20.0)
    assert gpu.deepest == 2


def test_idle_nothing_is_launched_while_another_process_is_there_and_the_count_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = [(7.0, 20.0), (30.0, 31.0)]
    gpu, turns = ran(monkeypatch, 20.0, busy=busy)
    assert gpu.deepest == 1  # nothing waits behind what runs: the GPU is free within one launch
    assert not [at for _, _, at in gpu.events if any(begin <= at < end for begin, end in busy)]
    assert [at for _, _, at in gpu.events if at >= 20.0]
    assert sum(turns._spent.values()) == pytest.approx(20.0, abs=3.0)  # waiting is no part of the time
    assert turns._waited == pytest.approx(13.0 + 1.0, abs=3.0)
    assert turns._fewest("short") == launches(gpu).count("short") * TILES["short"]


class Users:
    """What the management library lists, one answer after the other; the last one stays."""

    def __init__(self, *answers: set[int]) -> None:
        self._answers = list(answers)

    def pids(self) -> set[int]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.mark.parametrize(
    "before, after, later, others",
    [
        (set(), {7}, {7}, False),
        (set(), {7}, {7, 8}, True),
        ({5}, {5, 7}, {5, 7}, True),  # who was there before is another
        ({5}, {5, 7}, {7}, False),
        (set(), {4007}, {4007}, False),  # known by the host's id
        (set(), {4007}, {4007, 4010}, True),
        (set(), {7, 8}, {7, 8}, True),  # somebody came at the same moment
    ],
)
def test_others_are_told_from_oneself(before: set[int], after: set[int], later: set[int], others: bool) -> None:
    users: Any = Users(after, later)
    there = screen_process.others_on_gpu(users, before, 7)
    assert there is not None and there() is others


@pytest.mark.parametrize("after", [set(), {4007, 4010}])
def test_who_is_not_seen_on_the_gpu_cannot_give_way(after: set[int]) -> None:
    users: Any = Users(after)
    assert screen_process.others_on_gpu(users, set(), 7) is None
