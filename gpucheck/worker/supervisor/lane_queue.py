"""The tasks that several processes of a rank take one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from gpucheck import checks
from gpucheck.model.case import Case
from gpucheck.model.plan import Plan, Step
from gpucheck.worker.compile_claims import Claims, kernels_of

SHARE = 0.75  # of a GPU's free memory, for cases that need much of it: the rest is for those beside them

Task = tuple[int, ...]
"""Steps that one process runs one after the other."""


def needed_memory(step: Step) -> int:
    """See :meth:`gpucheck.checks.base.Check.needs_memory`."""
    return checks.load(step.case.check).needs_memory(step.case)


class Queue:
    """The tasks that are left, for several threads; those are given first that need no compiler and wait for no inputs.

    What another process compiles at the moment is given last, and what needs more of the GPU's memory than there is
    room for is not given at all.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        plan: Plan,
        claims: Claims | None,
        compiled: Sequence[Case],
        memory: Callable[[], int] = lambda: 0,
        ready: Callable[[int], bool] = lambda number: True,
    ) -> None:
        """Args:
        claims: of those who compile ahead; None: nobody does.
        compiled: what they compile, by number.
        memory: bytes that were free on the GPU when the run began; 0 while that is not known.
        ready: whether the inputs of a step are made.
        """
        self._left, self._claims = list(tasks), claims
        self._memory, self._ready = memory, ready
        self._needs_of = {number: needed_memory(plan.steps[number]) for number in chain.from_iterable(self._left)}
        self._needed = 0  # bytes, by the tasks that are under way
        numbers = {kernels_of(case): number for number, case in enumerate(compiled)} if claims else {}
        self._claim = {task: numbers.get(kernels_of(plan.steps[task[0]].case)) for task in self._left}
        self._lock = threading.Lock()

    def take(self, *, starts: bool = False) -> Task | None:
        """The next task; None: there is none, or none for which there is memory.

        Args:
            starts: the process that runs it is still to start, and its inputs are made meanwhile.
        """
        with self._lock:
            fitting = [task for task in self._left if self._fits(task)]
            if not fitting:
                return None
            ready = (task for task in fitting if starts or self._ready(task[0]))
            task = next(filter(self._free, chain(ready, fitting)), fitting[0])
            self._left.remove(task)
            self._needed += self._needs(task)
            return task

    def give_back(self, task: Task, left: Task) -> None:
        """Takes what is left of a task whose process did not come to run it."""
        with self._lock:
            self._left.insert(0, left)
            self._needed -= self._needs(task)

    def done(self, task: Task) -> None:
        """Its kernels are in the cache, and its memory is free."""
        number = self._claim.get(task)
        if number is not None and self._claims:
            self._claims.finish(number)
        with self._lock:
            self._needed -= self._needs(task)

    def drain(self) -> Task:
        """All steps that are left, which are then left no more."""
        with self._lock:
            left, self._left = self._left, []
            return tuple(chain.from_iterable(left))

    def _needs(self, task: Task) -> int:
        return max(self._needs_of[number] for number in task)

    def _fits(self, task: Task) -> bool:
        needs = self._needs(task)
        return not needs or self._needed + needs <= SHARE * self._memory()

    def _free(self, task: Task) -> bool:
        number = self._claim.get(task)
        return number is None or not self._claims or self._claims.finished(number) or self._claims.take(number)
