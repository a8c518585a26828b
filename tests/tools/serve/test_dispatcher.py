"""Which task runs where and when, with evaluators that answer when they are told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck.tools.serve import dispatcher as dispatching
from gpucheck.tools.serve.device_pool import Device, DeviceState
from gpucheck.tools.serve.dispatcher import Dispatcher
from gpucheck.tools.serve.evaluator import Ended
from gpucheck.tools.serve.service_options import Limits, ServiceOptions
from gpucheck.tools.serve.task_store import TaskStore
from gpucheck.tools.serve.tasks import Answer, Evaluation, State
from tests.processes import wait_until


@dataclass
class Puppets:
    """All evaluators of a test: what runs in them, and how it ends."""

    running: list[str] = field(default_factory=list)  # candidates, in the order they began
    began: list[tuple[str, str]] = field(default_factory=list)  # candidate and device
    ends: dict[str, threading.Event] = field(default_factory=dict)
    how: dict[str, Ended] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)  # devices that do not prove themselves
    proofs: list[str] = field(default_factory=list)

    def end(self, candidate: str, how: Ended | None = None) -> None:
        self.how[candidate] = how or Ended(code=0)
        self.ends.setdefault(candidate, threading.Event()).set()


class Puppet:
    """Takes the place of an evaluator."""

    def __init__(self, puppets: Puppets, uuid: str) -> None:
        self.puppets, self.uuid, self.pid = puppets, uuid, None
        self._candidate, self._stopped = "", ""

    confined = True

    def carry_out(self, name: str, command: Sequence[str], folder: Path, limits: Limits) -> Ended:
        self._candidate = command[0]
        self.puppets.began.append((self._candidate, self.uuid))
        self.puppets.running.append(self._candidate)
        self.puppets.ends.setdefault(self._candidate, threading.Event()).wait()
        self.puppets.running.remove(self._candidate)
        stopped, self._stopped = self._stopped, ""
        how = self.puppets.how.get(self._candidate, Ended())
        return replace(how, code=None, stopped=stopped) if stopped else how

    def prove(self, folder: Path) -> str:
        self.puppets.proofs.append(self.uuid)
        return "a product is wrong" if self.uuid in self.puppets.bad else ""

    def stop(self, name: str, why: str) -> None:
        self._stopped = why
        self.puppets.ends[self._candidate].set()

    def close(self) -> None:
        pass


@pytest.fixture
def puppets(monkeypatch: pytest.MonkeyPatch) -> Puppets:
    puppets = Puppets()
    monkeypatch.setattr(dispatching, "Evaluator", lambda uuid, *_: Puppet(puppets, uuid))
    monkeypatch.setattr(dispatching, "adopt", lambda: None)
    monkeypatch.setattr(dispatching.run_answer, "command", lambda evaluation, *_: [evaluation.candidate])

    def answer(_: Evaluation, ended: Ended, *__: Any) -> Answer:
        right = Answer(verdict="PASS", compiled=True, correct=True)
        return right if ended.code == 0 else Answer(500, detail=f"ended: {ended.stopped}", lasting=not ended.stopped)

    monkeypatch.setattr(dispatching.run_answer, "answer", answer)
    return puppets


Made = Callable[..., Dispatcher]


@pytest.fixture
def made(tmp_path: Path, puppets: Puppets) -> Iterator[Made]:
    started: list[Dispatcher] = []

    def make(gpus: int = 1, share: int = 2) -> Dispatcher:
        devices = [Device(number, "GPU", f"GPU-{number}") for number in range(gpus)]
        options = ServiceOptions(tmp_path, share=share)
        started.append(Dispatcher(options, TaskStore(tmp_path, 100), devices))
        started[-1].start()
        wait_until(lambda: all(device.state is not DeviceState.PROVING for device in devices))
        return started[-1]

    yield make
    for each in started:
        for event in puppets.ends.values():
            event.set()
        each.stop(0)


def submit(dispatcher: Dispatcher, *candidates: str, timed: bool = True, **more: Any) -> None:
    for candidate in candidates:
        dispatcher.submit(candidate, Evaluation("problem", candidate, timed=timed, **more), 1)


def state(dispatcher: Dispatcher, id: str) -> State:
    task = dispatcher.store.task(id)
    assert task is not None
    return task.state


def test_one_evaluation_has_a_device_while_times_are_taken(made: Made, puppets: Puppets) -> None:
    dispatcher = made()
    submit(dispatcher, "a", "b")
    wait_until(lambda: puppets.running == ["a"])
    puppets.end("a")
    wait_until(lambda: puppets.running == ["b"])
    assert state(dispatcher, "a") is State.COMPLETED


def test_several_share_a_device_while_only_correctness_is_asked_and_none_overtakes_one_that_is_timed(
    made: Made, puppets: Puppets
) -> None:
    dispatcher = made()
    submit(dispatcher, "a", "b", "c", timed=False)
    submit(dispatcher, "timed")
    submit(dispatcher, "later", timed=False)
    wait_until(lambda: sorted(puppets.running) == ["a", "b"])
    puppets.end("a")
    wait_until(lambda: sorted(puppets.running) == ["b", "c"])
    puppets.end("b")
    puppets.end("c")
    wait_until(lambda: puppets.running == ["timed"])
    puppets.end("timed")
    wait_until(lambda: puppets.running == ["later"])


def test_each_device_gets_work_and_a_preferred_one_is_taken_where_it_is_free(made: Made, puppets: Puppets) -> None:
    dispatcher = made(gpus=2)
    submit(dispatcher, "wants 1", preferred=1)
    wait_until(lambda: puppets.running == ["wants 1"])
    submit(dispatcher, "any")
    wait_until(lambda: sorted(puppets.running) == ["any", "wants 1"])
    assert dict(puppets.began) == {"wants 1": "GPU-1", "any": "GPU-0"}


def test_the_same_content_runs_once_at_a_time(made: Made, puppets: Puppets) -> None:
    dispatcher = made(gpus=2)
    for id in ("first", "second"):
        dispatcher.submit(id, Evaluation("problem", "same"), 1)
    submit(dispatcher, "other")
    wait_until(lambda: sorted(puppets.running) == ["other", "same"])
    puppets.end("same")
    wait_until(lambda: state(dispatcher, "second") is State.COMPLETED)
    assert [candidate for candidate, _ in puppets.began].count("same") == 1


def test_a_running_task_is_cancelled_and_the_next_begins(made: Made, puppets: Puppets) -> None:
    dispatcher = made()
    submit(dispatcher, "a", "b")
    wait_until(lambda: puppets.running == ["a"])
    told = threading.Event()
    dispatcher.when_ended("a", told.set)
    assert dispatcher.cancel("a") and told.wait()
    wait_until(lambda: puppets.running == ["b"])
    assert state(dispatcher, "a") is State.CANCELLED


def test_a_device_proves_itself_after_a_death_before_it_takes_work_and_leaves_the_pool_where_it_cannot(
    made: Made, puppets: Puppets
) -> None:
    dispatcher = made(gpus=2, share=1)
    submit(dispatcher, "kills", "next", preferred=0)
    wait_until(lambda: dict(puppets.began).get("kills") == "GPU-0")
    puppets.bad.add("GPU-0")
    puppets.end("kills", Ended(code=-9))
    wait_until(lambda: dispatcher.devices[0].state is DeviceState.FAILED)
    assert dispatcher.devices[0].problem == "a product is wrong" and puppets.proofs.count("GPU-0") == 2
    wait_until(lambda: "next" in puppets.running)
    puppets.end("next")
    submit(dispatcher, "third", preferred=0)
    wait_until(lambda: "third" in puppets.running)
    assert dict(puppets.began)["third"] == "GPU-1"


def test_a_reset_ends_what_runs_proves_the_device_and_takes_it_back(made: Made, puppets: Puppets) -> None:
    dispatcher = made()
    device = dispatcher.devices[0]
    submit(dispatcher, "hangs", "next")
    wait_until(lambda: puppets.running == ["hangs"])
    assert dispatcher.reset(device) == 1
    assert device.state is DeviceState.READY and device.faults == 0 and puppets.proofs == ["GPU-0", "GPU-0"]
    wait_until(lambda: puppets.running == ["next"])
    assert state(dispatcher, "hangs") is State.FAILED


def test_what_does_not_end_in_time_is_handed_back_when_the_server_stops(made: Made, puppets: Puppets) -> None:
    dispatcher = made()
    submit(dispatcher, "long", "waiting")
    wait_until(lambda: puppets.running == ["long"])
    told = threading.Event()
    dispatcher.when_ended("waiting", told.set)
    dispatcher.stop(0)
    assert told.is_set()
    assert [task.id for task in dispatcher.store.waiting(9)] == ["long", "waiting"]
    assert [task.starts for task in dispatcher.store.waiting(9)] == [0, 0]
