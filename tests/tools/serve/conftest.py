"""A dispatcher whose evaluators answer when they are told to, and the application in front of it without a network."""

from __future__ import annotations

import asyncio
import json
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

    def make(gpus: int = 1, share: int = 2, queue: int = 100) -> Dispatcher:
        devices = [Device(number, "GPU", f"GPU-{number}") for number in range(gpus)]
        options = ServiceOptions(tmp_path, share=share, queue=queue)
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


def call(app: Any, method: str, path: str, body: object = None) -> tuple[int, Any, dict[str, str]]:
    """Status, answer and headers of a request to an ASGI application."""
    sent: list[Any] = []
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("localhost", 1), "root_path": ""}
    left = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        return left.pop() if left else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    text = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(text), {k.decode(): v.decode() for k, v in sent[0]["headers"]}
