"""The process that answers single calls: what it holds, when launches change, what it reads outputs with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.worker.device import single_calls
from gpucheck.worker.device.guarded_memory import GuardedMemory
from gpucheck.worker.device.launch_modes import Launches
from gpucheck.worker.device.launch_observer import Observer
from gpucheck.worker.protocol import IDLE, RUN, Call, Reply, Request

pytest.importorskip("triton")

CPU = torch.device("cpu")
CASE = Case("twice", {}, "normal", "twice/normal", "twice", 0)


class Twice:
    """A check whose candidate keeps the inputs that it was called with."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.given = log, list[Any]()
        self.load: Callable[[], None] = lambda: None  # what the file of the candidate does when it is executed

    def prepare(self, case: Any, inputs: dict[str, Any], runtime: Any) -> str:
        self.log.append("prepared")
        self.names = set(inputs)
        self.load()
        return "candidate"

    def baseline(self, case: Any, inputs: dict[str, Any], runtime: Any) -> str:
        return "model"

    def call(self, prepared: str, inputs: dict[str, Any]) -> dict[str, Any]:
        self.log.append(f"called {prepared}")
        self.given.append(inputs["input0"])
        if bool(inputs["input0"].isnan().any()):
            raise ValueError("NaN\nand more")
        return {"out": torch.empty(2, 5).copy_(inputs["input0"] * 2).t()}


Ask = Callable[..., tuple[Reply, Any]]


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def made(log: list[str], monkeypatch: pytest.MonkeyPatch) -> Twice:
    check = Twice(log)
    monkeypatch.setattr(single_calls.checks, "load", lambda name: check)
    return check


@pytest.fixture
def ask(tmp_path: Path, log: list[str], made: Twice) -> Ask:
    """Asks a process for a call; its first one makes the candidate."""
    executor: Any = SimpleNamespace(
        device=CPU,
        memory=GuardedMemory(CPU),
        observer=Observer(),
        identity={"device": "cpu"},
        synchronize=lambda: None,
        current_stream=lambda: None,
        poisoned_context=lambda: False,
    )
    launches = Launches(lambda mode: log.append(mode), lambda: len(log))
    roles = {role: single_calls._answering(executor, launches, role) for role in (False, True)}

    def ask(value: Any, *, baseline: bool = False, **how: Any) -> tuple[Reply, Any]:
        given, inputs, outputs = (str(tmp_path / name) for name in ("given", "inputs", "outputs"))
        torch.save({"state.weight": torch.ones(3), "input0": torch.zeros(2, 5)}, given)
        torch.save({"input0": value}, inputs)
        request = Request(CASE, Conditions(), given, (outputs,), call=Call(inputs, **how))
        (reply,) = roles[baseline](request)
        return reply, torch.load(outputs, weights_only=True)["out"] if reply.status == "ran" else None

    return ask


def test_launches_do_what_is_asked_for_at_the_call_and_the_candidate_is_made_once(
    ask: Ask, log: list[str], made: Twice
) -> None:
    x = torch.arange(10.0).view(2, 5)
    reply, out = ask(x)
    assert torch.equal(out, (x * 2).t()) and out.is_contiguous() and made.names == {"state.weight", "input0"}
    ask(x, launches=IDLE)
    assert log == ["prepared", RUN, "called candidate", IDLE, "called candidate"]
    assert reply.launched == 2, "what came between its two counts"
    assert ask(x, baseline=True)[0].status == "ran" and log[-1] == "called model"


def test_inputs_come_in_new_memory_or_in_that_of_the_call_before(ask: Ask, made: Twice) -> None:
    x = torch.rand(2, 5)
    for how in ({}, {}, {"in_place": True}):
        ask(x + len(made.given), **how)
    first, second, third = (given.data_ptr() for given in made.given)
    assert first != second == third and torch.equal(made.given[2], x + 2)
    ask(torch.rand(3, 3), in_place=True)
    assert made.given[3].data_ptr() != third, "they do not fit there"


def test_outputs_are_read_with_what_was_there_before_the_candidate(
    ask: Ask, made: Twice, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(2, 5)
    with monkeypatch.context() as patch:

        def load() -> None:
            for name in ("to", "cpu", "detach", "contiguous"):
                patch.setattr(torch.Tensor, name, lambda tensor, *args, **kwargs: torch.zeros(5, 2))
            patch.setattr(torch, "save", lambda held, path: None)
            patch.setattr(single_calls, "Reply", None)
            patch.setattr(single_calls, "asdict", None)

        made.load = load
        reply, out = ask(x)
    assert reply.status == "ran" and torch.equal(out, (x * 2).t())


def test_a_call_that_raises_is_told_and_the_next_one_answers(ask: Ask) -> None:
    reply, _ = ask(torch.full((2, 5), float("nan")))
    assert (reply.status, reply.message, reply.fatal) == ("error", "ValueError: NaN", False)
    assert "in call" in reply.traceback and ask(torch.zeros(2, 5))[0].status == "ran"


def test_a_stressed_call_is_rehearsed_and_its_memory_is_ready(
    ask: Ask, log: list[str], made: Twice, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[Any] = []
    monkeypatch.setattr(single_calls.stream_stress, "delay", delays.append)
    x = torch.rand(2, 5)
    for how in ({"late": True}, {"prompt": True, "launches": IDLE}):
        log.clear()
        reply, out = ask(x, **how)
        assert reply.status == "ran" and torch.equal(out, (x * 2).t()), reply.traceback
        assert [word for word in log if word.startswith("called")] == ["called candidate"] * 2
    assert delays == [CPU], "inputs that come late come behind a delay"


class Event:
    """Stands in for an event of a GPU."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        assert stream == "current"

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, last: Event) -> float:
        return 4.0


def test_the_delay_before_a_timed_call_does_not_grow_with_calls_that_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holds: list[float] = []
    now = [0.0]
    clock = SimpleNamespace(hold=holds.append, flush=lambda: None)
    monkeypatch.setattr(single_calls, "CudaClock", lambda device: clock)
    monkeypatch.setattr(single_calls.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    timed = single_calls._timing(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "Event", None)

    def waits() -> dict[str, Any]:
        now[0] += 1.0 + holds[-1]
        return {}

    assert [timed(waits) for _ in range(4)] == [({}, 0.004)] * 4
    assert holds == [0.0, 1.5, 1.5, 1.5]
