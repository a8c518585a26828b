"""Trying operations in forked processes with a deadline each, so that one that hangs or dies costs itself alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpucheck.host.forkserver import Child, Forkserver, Unkillable
from gpucheck.host.isolated import receive, send
from gpucheck.host.processes import ending

IMPORT_LIMIT = 180.0  # s to import torch, which takes long from a cold network folder
MOST_PROCESSES = 3  # that a task may wear out; what comes after that is not tried
KILLED = 1.0  # s that a killed process is waited for: one whose GPU hangs may never end

Answer = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One thing to try."""

    name: str
    function: str  # of :mod:`gpucheck.tools.doctor.operations`; returns value, problem, and further facts
    subject: Any = ""  # what it is called with: a device, or two


@dataclass(frozen=True)
class Task:
    """Operations that run one after the other in one process, until that dies."""

    subject: str  # named in the answers: a device, or nothing
    operations: Sequence[Operation]


def try_all(server: Forkserver, limit: float) -> Iterator[Answer]:
    """Surveys the devices, then tries every operation on each, then the copies between each two.

    Args:
        server: forks processes that run :mod:`gpucheck.tools.doctor.device_process`.
        limit: seconds that one operation may take.

    Raises:
        OSError: the server has died.
    """
    (survey,) = perform(server, [Task("", [Operation("survey", "survey")])], limit)
    yield survey
    count = len(survey.get("devices", []))
    subjects = [f"cuda:{number}" for number in range(count)] or ["cpu"]
    names = ("allocate", "matmul", "seed")
    yield from perform(server, [Task(on, [Operation(name, name, on) for name in names]) for on in subjects], limit)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    yield from perform(server, [Task("", [Operation(f"copy {a} {b}", "copy", (a, b)) for a, b in pairs])], limit)


def perform(server: Forkserver, tasks: Sequence[Task], limit: float) -> list[Answer]:
    """Tries all tasks at once, each in a process of its own; one answer an operation.

    An answer holds ``operation``, ``subject`` and ``outcome``: "done" with what the operation returned, "raised" with
    ``message``, "died" with ``message``, "hung", or "skipped". After a death or a hang a fresh process goes on with the
    next operation.
    """
    with ThreadPoolExecutor(len(tasks)) as pool:
        done = pool.map(lambda task: list(_work(server, task, limit)), tasks)
        return [answer for answers in done for answer in answers]


def _work(server: Forkserver, task: Task, limit: float) -> Iterator[Answer]:
    child, processes = None, 0
    for operation in task.operations:
        if child is None and processes < MOST_PROCESSES:
            child, processes = server.spawn(IMPORT_LIMIT), processes + 1
        outcome = _outcome(server, child, operation, limit) if child else {"outcome": "skipped"}
        if outcome["outcome"] in ("died", "hung"):
            child = None
        yield {"operation": operation.name, "subject": task.subject, **outcome}
    if child:
        _end_of(server, child)


def _outcome(server: Forkserver, child: Child, operation: Operation, limit: float) -> Answer:
    """What came of one operation in a process, which has ended where it died or hung."""
    try:
        send(child.connection, [operation.function, operation.subject])
        if child.connection.poll(limit):
            outcome: Answer = receive(child.connection)
            return outcome
    except (EOFError, OSError, ValueError):
        return {"outcome": "died", "message": _end_of(server, child)}
    with suppress(Unkillable):
        server.kill(child, KILLED)
    return {"outcome": "hung"}


def _end_of(server: Forkserver, child: Child) -> str:
    """How a process ends that has closed its connection, or whose connection is closed here."""
    try:
        return ending(server.reap(child))
    except Unkillable as unkillable:
        return str(unkillable)
