"""Judges the attempts of a rank while its GPU goes on: threads that hand each one to a process of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import torch

from gpucheck.model.plan import Plan
from gpucheck.model.record import Record
from gpucheck.worker.supervisor import judging, side_process
from gpucheck.worker.supervisor.attempt import Attempt
from gpucheck.worker.supervisor.case_files import CaseFiles

THREADS = 2  # of torch in a process that judges: more do not help, its operations are small


class JudgeProcesses:
    """Processes that judge; they end when they are closed, or with the supervisor."""

    def __init__(self, plan: Plan, count: int) -> None:
        """Forks them from this process; see :func:`side_process.fork`."""
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._pids: list[int] = []
        connections: list[Connection] = []
        for _ in range(count):
            ours, theirs = Pipe()
            connections.append(ours)
            self._pids.append(side_process.fork(plan, THREADS, partial(_serve, plan, theirs, tuple(connections))))
            theirs.close()
            self._idle.put(ours)
        self.count = count

    def finished(self, files: CaseFiles, attempt: Attempt) -> Record:
        """The record of an attempt, see :func:`judging.finished`; made here where the process that had it died."""
        connection = self._idle.get()
        try:
            connection.send(attempt)
            record = connection.recv()
        except (EOFError, OSError):
            return judging.finished(files, attempt)
        finally:
            self._idle.put(connection)
        assert isinstance(record, Record)
        return record

    def close(self) -> None:
        """Ends them."""
        side_process.kill(self._pids)


def _serve(plan: Plan, connection: Connection, others: tuple[Connection, ...]) -> None:
    for other in others:  # inherited: they would keep a process waiting whose supervisor has died
        other.close()
    files = CaseFiles.of(plan)
    with suppress(EOFError, OSError):
        while True:
            connection.send(judging.finished(files, connection.recv()))


class JudgePool:
    """Threads that finish attempts in turn; with as many waiting as there is room for, giving one more waits."""

    def __init__(self, count: int, threads: int, most: int, most_bytes: int, finish: Callable[[Attempt], None]) -> None:
        """Args:
        threads: of torch, in each of these threads.
        most: attempts that wait or are judged at once.
        most_bytes: of their outputs.
        """
        self._threads = ThreadPoolExecutor(count, "judge", initializer=torch.set_num_threads, initargs=(threads,))
        self._most, self._most_bytes, self._finish = most, most_bytes, finish
        self._room = threading.Condition()
        self._pending: dict[Future[None], int] = {}  # with the bytes of the outputs
        self._error: BaseException | None = None

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._threads.shutdown()
        if kind is None and self._error:
            raise self._error

    def wait_for_room(self) -> None:
        """Returns when one more attempt may wait; raises what a judge raised, which nothing can be judged after."""
        with self._room:
            self._room.wait_for(lambda: self._error is not None or self._has_room())
            if self._error:
                raise self._error

    def wait_for_all(self) -> None:
        """Returns when none waits to be judged, or is being judged; raises as :meth:`wait_for_room`."""
        with self._room:
            self._room.wait_for(lambda: self._error is not None or not self._pending)
        self.wait_for_room()

    def submit(self, attempt: Attempt) -> None:
        """Has an attempt finished."""
        size = attempt.output_bytes  # before the judge removes them
        with self._room:
            future = self._threads.submit(self._finish, attempt)
            self._pending[future] = size
        future.add_done_callback(self._ended)

    def _has_room(self) -> bool:
        sizes: Mapping[Future[None], int] = self._pending
        return len(sizes) < self._most and sum(sizes.values()) <= self._most_bytes

    def _ended(self, future: Future[None]) -> None:
        with self._room:
            del self._pending[future]
            self._error = self._error or future.exception()
            self._room.notify_all()
