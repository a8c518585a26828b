"""Processes of experiments that run at once, each with a runner of its own; what one answers may ask for others.

Nobody waits for an answer that nearly always comes: what it will ask for is begun ahead, and counts only if it does ask
for that very process.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass

from gpucheck.model.plan import Step
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.worker.supervisor.child_runner import ChildRunner


@dataclass(frozen=True)
class ExperimentProcess:
    """One process of an experiment, and the case that it runs."""

    number: int
    step: Step  # under the changed conditions
    name: ExperimentName
    deadline: float | None = None  # s; None takes the plan's
    after: tuple[int, ...] = ()  # steps that the process runs before
    own: bool = False  # its files are made for it and go with it
    known: bool = False  # one call is enough where it gives the bits of the failure


Follow = Callable[[ExperimentProcess], Sequence[ExperimentProcess]]
"""What the answer to a process asks for."""


def nothing(process: ExperimentProcess) -> Sequence[ExperimentProcess]:
    """No answer asks for more."""
    return ()


class ExperimentPool:
    """The runners of a rank, each with one process at a time."""

    def __init__(
        self,
        runners: Sequence[ChildRunner],
        make: Callable[[ExperimentProcess, ChildRunner], Record | None],
        take: Callable[[ExperimentProcess, Record], object],
    ) -> None:
        """Args:
        make: runs a process with a runner; None: it found no time or no memory beside the others.
        take: what is done with an answer that counts; called in the thread that runs the pool.
        """
        self._runners, self._make, self._take = runners, make, take
        self._idle: queue.SimpleQueue[ChildRunner] = queue.SimpleQueue()
        for runner in runners:
            self._idle.put(runner)

    def run(
        self,
        processes: Sequence[ExperimentProcess],
        ahead: Sequence[ExperimentProcess] = (),
        follow: Follow = nothing,
    ) -> list[ExperimentProcess]:
        """Runs processes side by side, as many at once as there are runners, and what their answers ask for.

        Args:
            ahead: begun after ``processes`` without being asked for; each counts if an answer asks for one like it.
            follow: asked about each of ``processes``.

        Returns:
            Those that were asked for and gave no answer.
        """
        silent: list[ExperimentProcess] = []

        def take(process: ExperimentProcess, ended: Future[Record | None]) -> None:
            record = ended.result()
            if record is None:
                silent.append(process)
            else:
                self._take(process, record)

        with ThreadPoolExecutor(len(self._runners), "experiment") as threads:
            started = [(threads.submit(self._one, process), process) for process in (*processes, *ahead)]
            asking = {ended for ended, _ in started[: len(processes)]}
            unasked = dict(started[len(processes) :])
            running = dict(started)
            while running:
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    process = running.pop(ended)
                    if ended in unasked:
                        ended.result()  # what it raised is raised
                        continue
                    take(process, ended)
                    for other in follow(process) if ended in asking else ():
                        early = next((each for each in unasked if unasked[each] == other), None)
                        if early is None:
                            running[threads.submit(self._one, other)] = other
                        elif early in running:
                            del unasked[early]
                        else:
                            take(unasked.pop(early), early)
        return silent

    def share(self, tasks: Sequence[Sequence[ExperimentProcess]]) -> list[ExperimentProcess]:
        """Runs tasks side by side, each in one process: cases that may share it, one after the other.

        Returns:
            Those that gave no answer.
        """
        silent: list[ExperimentProcess] = []
        with ThreadPoolExecutor(len(self._runners), "experiment") as threads:
            started = {threads.submit(self._in_turn, task): task for task in tasks}
            for ended in as_completed(started):
                for process, record in zip(started[ended], ended.result(), strict=True):
                    silent += [process] if record is None else []
                    if record is not None:
                        self._take(process, record)
        return silent

    def _in_turn(self, task: Sequence[ExperimentProcess]) -> list[Record | None]:
        runner = self._idle.get()
        try:
            return [self._make(process, runner) for process in task]
        finally:
            runner.child.retire()
            self._idle.put(runner)

    def _one(self, process: ExperimentProcess) -> Record | None:
        return self._in_turn([process])[0]
