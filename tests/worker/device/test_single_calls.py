"""The process that answers single calls: what it holds, when launches change, what it reads outputs with."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.worker import parcels
from gpucheck.worker.device import single_calls
from gpucheck.worker.device.guarded_memory import GuardedMemory
from gpucheck.worker.device.launch_modes import Launches
from gpucheck.worker.device.launch_observer import Observer
from gpucheck.worker.protocol import AFTER, FETCH, GO, IDLE, PLACE, RUN, Call, Reply, Request

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
        let_go=lambda: log.append("let go"),
    )
    launches = Launches(lambda mode: log.append(mode), lambda: len(log))
    roles = {role: single_calls._answering(executor, launches, role) for role in (False, True)}

    def ask(value: Any, *, baseline: bool = False, box: str = "", **how: Any) -> tuple[Reply, Any]:
        given, inputs, outputs = (str(tmp_path / name) for name in ("given", "inputs", "outputs"))
        torch.save({"state.weight": torch.ones(3), "input0": torch.zeros(2, 5)}, given)
        torch.save({"input0": value}, inputs)
        request = Request(CASE, Conditions(), given, (outputs,), call=Call(inputs, **how), box=box)
        (reply,) = roles[baseline](request)
        wrote = reply.status == "ran" and how.get("step") not in (PLACE, GO)
        return reply, parcels.on_host(outputs)["out"] if wrote else None

    return ask


def test_launches_do_what_is_asked_for_at_the_call_and_the_candidate_is_made_once(
    ask: Ask, log: list[str], made: Twice
) -> None:
    x = torch.arange(10.0).view(2, 5)
    reply, out = ask(x)
    assert torch.equal(out, (x * 2).t()) and out.is_contiguous() and made.names == {"state.weight"}
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


class Lazy(torch.Tensor):
    """A tensor whose work is done when it is read."""


def test_outputs_that_could_do_their_work_later_are_refused(ask: Ask, made: Twice) -> None:
    made.call = lambda prepared, inputs: {"out": torch.ones(2).as_subclass(Lazy)}  # type: ignore[method-assign]
    for how in ({}, {"step": GO}):
        assert "out is a Lazy, expected a torch.Tensor and no subclass of it" in ask(torch.ones(2, 5), **how)[0].message


class Through(TorchFunctionMode):
    """Changes nothing."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def test_a_mode_of_torch_that_a_call_leaves_on_is_told(ask: Ask, made: Twice) -> None:
    mode = Through()
    made.call = lambda prepared, inputs: mode.__enter__() and {"out": torch.ones(2)}  # type: ignore[method-assign]
    try:
        assert "the call left a mode of torch on" in ask(torch.ones(2, 5))[0].message
    finally:
        mode.__exit__(None, None, None)


def test_what_the_inputs_hold_after_the_call_is_written_where_it_is_asked_for(ask: Ask, tmp_path: Path) -> None:
    x = torch.rand(2, 5)
    ask(x, compared=True)
    assert torch.equal(torch.load(tmp_path / "outputs")[AFTER + "input0"], x)


def test_memory_is_given_back_behind_a_call_with_large_outputs_and_not_between_timed_ones(
    ask: Ask, log: list[str], made: Twice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "digest", lambda outputs: pytest.fail("who takes outputs asks for no hash of them"))
    box = parcels.make_box(str(tmp_path / "box"), 4096, CPU).path
    x = torch.rand(2, 5)
    assert torch.equal(ask(x, box=box)[1], (x * 2).t()) and log[-1] == "let go"
    ask(x)
    called = weakref.ref(made.given.pop())
    made.given.clear()
    assert called() is not None, "the next call may ask for its memory"
    ask(x, box=box, step=PLACE)
    assert called() is None, "no later call can ask for it"
    ask(x, box=box, step=GO)
    assert torch.equal(ask(x, box=box, step=FETCH)[1], (x * 2).t()) and log.count("let go") == 1
