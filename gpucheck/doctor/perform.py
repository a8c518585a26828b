"""Trying operations in forked processes with a deadline each, so that one that hangs or dies costs itself alone."""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_PROCESSES = 3  # that a task may wear out; what comes after that is not tried
GRACE = 10.0  # s to end after the last operation
PR_SET_PDEATHSIG = 1

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Operation:
    """One thing to try."""

    name: str
    run: Callable[..., dict[str, Any]]  # called with the task's subject; returns value, problem, and further facts


@dataclass
class Task:
    """Operations that run one after the other in one process, until that dies."""

    subject: str  # what the operations are called with: a device, or nothing
    operations: Sequence[Operation]
    done: int = 0  # operations that have an outcome
    processes: int = 0  # started so far


@dataclass
class _Worker:
    """A forked process at work on a task."""

    task: Task
    pid: int
    pipe: int
    deadline: float  # of the operation it is at
    buffer: bytearray = field(default_factory=bytearray)


def perform(tasks: Sequence[Task], limit: float, emit: Emit) -> None:
    """Tries all tasks at once, each in a process of its own, and emits one outcome an operation.

    An outcome holds ``operation``, ``subject`` and ``outcome``: "done" with what the operation returned, "raised" with
    ``message``, "died" with ``message``, "hung", or "skipped". After a death or a hang a fresh process goes on with the
    next operation.

    Args:
        limit: seconds that one operation may take.
    """
    with selectors.DefaultSelector() as selector:
        for task in tasks:
            _start(task, limit, selector)
        while selector.get_map():
            workers: list[_Worker] = [key.data for key in selector.get_map().values()]
            rest = min(worker.deadline for worker in workers) - time.monotonic()
            ready = selector.select(max(0.0, rest))
            for key, _ in ready:
                _advance(key.data, limit, selector, emit)
            for worker in [] if ready else workers:
                if time.monotonic() > worker.deadline:
                    os.kill(worker.pid, signal.SIGKILL)
                    _end(worker, limit, selector, emit, {"outcome": "hung"})


def _start(task: Task, limit: float, selector: selectors.BaseSelector) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    task.processes += 1
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _work(task, writing)
    os.close(writing)
    selector.register(reading, selectors.EVENT_READ, _Worker(task, pid, reading, time.monotonic() + limit))


def _work(task: Task, pipe: int) -> None:
    """The forked process: its outcomes go through the pipe, whatever else it prints to stderr."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(2, 1)
    for operation in task.operations[task.done :]:
        try:
            outcome = {"outcome": "done", **operation.run(task.subject)}
        except BaseException as error:
            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0]
            outcome = {"outcome": "raised", "message": f"{type(error).__name__}: {first}".rstrip(": ")}
        line = json.dumps(outcome).encode() + b"\n"
        while line:
            line = line[os.write(pipe, line) :]
    sys.stderr.flush()
    os._exit(0)


def _advance(worker: _Worker, limit: float, selector: selectors.BaseSelector, emit: Emit) -> None:
    """Takes what a worker has written; at its end, what is missing."""
    data = os.read(worker.pipe, 1 << 16)
    worker.buffer += data
    for line in _lines(worker.buffer):
        _outcome(worker.task, json.loads(line), emit)
        worker.deadline = time.monotonic() + limit
    if data:
        return
    _end(worker, limit, selector, emit, {"outcome": "died", "message": _death(worker.pid)})


def _death(pid: int) -> str:
    """How a process that has closed its pipe ends; one whose contexts do not come down is not waited for."""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        time.sleep(0.01)
    return f"did not end within {GRACE:g} s"


def _lines(buffer: bytearray) -> Iterator[bytes]:
    """Takes the complete lines out of a buffer."""
    while b"\n" in buffer:
        line, _, rest = buffer.partition(b"\n")
        buffer[:] = rest
        yield bytes(line)


def _end(worker: _Worker, limit: float, selector: selectors.BaseSelector, emit: Emit, outcome: dict[str, Any]) -> None:
    """Lets go of a worker; the operation that it was at, if any, gets the outcome."""
    selector.unregister(worker.pipe)
    os.close(worker.pipe)
    task = worker.task
    if task.done == len(task.operations):
        return
    _outcome(task, outcome, emit)
    if task.done < len(task.operations) and task.processes < MOST_PROCESSES:
        _start(task, limit, selector)
        return
    while task.done < len(task.operations):
        _outcome(task, {"outcome": "skipped"}, emit)


def _outcome(task: Task, outcome: dict[str, Any], emit: Emit) -> None:
    emit({"operation": task.operations[task.done].name, "subject": task.subject, **outcome})
    task.done += 1
