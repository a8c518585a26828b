"""Timed calls: inputs that mean nothing before time runs, and outputs as they were when it stopped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck.worker.device import timed_calls
from gpucheck.worker.device.timed_calls import TAIL, timed_steps
from gpucheck.worker.sealed_inputs import bit_sum, seal

CPU = torch.device("cpu")
KEY = 0x1234_5678_9ABC_DEF1


def inputs() -> dict[str, Any]:
    numbers = torch.randn(3, 4)
    return {
        "input0": numbers,
        "input1": numbers.t(),
        "input2": numbers.to(torch.bfloat16),
        "input3": torch.tensor([True, False]),
        "input4": torch.arange(5),
        "input5": torch.ones(1).expand(7),
        "input6": torch.tensor(2.5, dtype=torch.float64),
        "input7": torch.empty(0),
    }


def test_a_seal_hides_what_is_in_the_inputs_until_it_is_broken_and_keeps_their_form() -> None:
    given, steps, seen = inputs(), timed_steps(CPU), dict[str, Any]()
    sealed = seal(given, KEY)
    hidden = [name for name, value in given.items() if not torch.equal(value, sealed[name])]
    assert hidden == [f"input{number}" for number in (0, 1, 2, 3, 4, 6)], "those with gaps or nothing in them stay"
    steps.place(sealed)

    def call(values: dict[str, Any]) -> dict[str, Any]:
        seen.update(values)
        return {"out": values["input0"] * 2}

    assert steps.go(call, KEY, True) == (0.0, bit_sum({"out": given["input0"] * 2})) and torch.equal(
        steps.fetch()["out"], given["input0"] * 2
    )
    for name, value in given.items():
        assert torch.equal(seen[name], value) and seen[name].stride() == value.stride(), name


def test_outputs_that_are_written_after_the_call_are_taken_as_they_were() -> None:
    steps = timed_steps(CPU)
    steps.place(seal(inputs(), KEY))
    out = torch.zeros(4)
    steps.go(lambda values: {"out": out}, KEY, True)
    out.fill_(1)
    assert torch.equal(steps.fetch()["out"], torch.zeros(4))


class Event:
    """Stands in for an event of a GPU, which reaches it when the clock says."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: Any) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, last: Event) -> float:
        return 1000 * (last.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU whose clock stands still but for what calls take and what other streams have left."""
    monkeypatch.setattr(Event, "now", 0.0)
    told = SimpleNamespace(holds=[], left=0.0, steps=[])

    def wait() -> None:
        Event.now, told.left = Event.now + told.left, 0.0

    own = {
        "_CudaEventBase": Event,
        "_cuda_setDevice": lambda number: None,
        "_cuda_setStream": lambda **stream: None,
        "_cuda_sleep": lambda cycles: told.holds.append(cycles / timed_calls.CYCLES),
        "_cuda_synchronize": wait,
    }
    for name, value in own.items():
        monkeypatch.setattr(torch._C, name, value, raising=False)
    stream = SimpleNamespace(stream_id=0, device_index=0, device_type=1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(
        timed_calls, "CudaClock", lambda device: SimpleNamespace(flush=lambda: told.steps.append("cache emptied"))
    )
    monkeypatch.setattr(timed_calls.time, "perf_counter", lambda: Event.now)
    told.timed = timed_calls._on_gpu(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "current_stream", None)
    return told


def test_the_delay_before_a_timed_call_does_not_grow_with_calls_that_wait_for_it(gpu: Any) -> None:
    def waits() -> dict[str, Any]:
        Event.now += 1.0 + gpu.holds[-1]
        return {}

    times = [gpu.timed(lambda: None, waits, lambda outputs: None, True) for _ in range(3)]
    gpu.timed(lambda: None, dict, lambda outputs: None, False)
    assert gpu.holds == pytest.approx([0.0, 1.5, 1.5]) and times == pytest.approx([1.0, 2.5, 2.5])


@pytest.mark.parametrize(("left", "seconds"), [(0.0, 1.0), (TAIL / 2, 1.0), (3.0, 4.0)])
def test_work_on_streams_that_nobody_waits_for_counts(gpu: Any, left: float, seconds: float) -> None:
    def leaves() -> dict[str, Any]:
        Event.now += 1.0
        gpu.left = left
        return {}

    assert gpu.timed(lambda: None, leaves, lambda outputs: None, True) == pytest.approx(seconds)


def test_the_inputs_of_a_timed_call_are_not_in_the_cache(gpu: Any) -> None:
    gpu.timed(lambda: gpu.steps.append("unsealed"), lambda: gpu.steps.append("called") or {}, lambda _: None, False)
    assert gpu.steps == ["unsealed", "cache emptied", "called"]
