"""Which steps of a plan run beside each other on one GPU, each in a process of its own.

Most of a case's time is its host's: while one process prepares, copies or compiles, others launch. What puts stress on
the order of launches has the GPU for itself, and so has what needs more of its memory than others leave.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from gpucheck import checks
from gpucheck.host.resources import available_memory
from gpucheck.model.case import Case
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import lacks_memory
from gpucheck.worker.compile_claims import kernels_of
from gpucheck.worker.supervisor.attempt import Attempt, remove_outputs
from gpucheck.worker.supervisor.child_runner import ChildRunner
from gpucheck.worker.supervisor.lane_queue import Queue, Task

LANES = 4  # at most: processes of a rank that run cases at once
EXPERIMENTS = 4  # at most, for each of them: processes that run experiments at once
PROCESSORS = 4  # that each of them keeps busy, with those who make its inputs and judge its outputs
MEMORY = 6 << 30  # bytes of the host that must be free for each of them
FEW = 16  # steps of one kind of process that are not worth starting several for
MPS = Path("/tmp/nvidia-mps/control")  # where the control daemon listens that lets processes share one context


def count(plan: Plan, processors: int) -> int:
    """How many processes of a rank run cases at once; one where each call is to be timed, repeated or replayed."""
    single = (
        plan.duration,
        plan.replay,
        plan.candidates,
        plan.bench,
        plan.debug,
        plan.isolate != "rank",
        shares_context(),
    )
    memory = available_memory()
    room = LANES if memory is None else memory // plan.nproc // MEMORY
    return 1 if any(single) else max(1, min(LANES, processors // PROCESSORS, room))


def experiments_at_once(plan: Plan, lanes: int, processors: int) -> int:
    """How many processes of a rank run experiments at once: those who make inputs have ended by then.

    Args:
        lanes: see :func:`count`.
    """
    memory = available_memory()
    most = processors if memory is None else min(processors, 2 * memory // plan.nproc // MEMORY)
    return 1 if lanes == 1 else max(lanes, min(EXPERIMENTS * lanes, most))


def shares_context() -> bool:
    """Whether processes on a GPU share its context: there a fault of one ends the others too."""
    return bool(os.environ.get("CUDA_MPS_PIPE_DIRECTORY")) or MPS.exists()


@dataclass(frozen=True)
class Schedule:
    """The steps of a rank."""

    beside: tuple[Task, ...]  # at once
    alone: Task  # after these, one by one

    @property
    def order(self) -> list[int]:
        """About the order in which they are begun."""
        return [*chain.from_iterable(self.beside), *self.alone]


def schedule(plan: Plan, order: Sequence[int], lanes: int) -> Schedule:
    """What runs beside what, given the order in which one process would take the steps."""
    if lanes == 1:
        return Schedule((), tuple(order))
    singles: list[Task] = []
    early: list[Task] = []
    sequences: list[Task] = []
    alone: list[int] = []
    for _, kind in groupby(order, key=lambda number: plan.steps[number].conditions.lifelong):
        numbers = list(kind)
        alone += [number for number in numbers if not runs_beside(plan.steps[number])]
        beside = [number for number in numbers if runs_beside(plan.steps[number])]
        if len(beside) < FEW:
            sequences += [tuple(beside)] * bool(beside)
        else:
            for _, group in groupby(beside, key=lambda number: kernels_of(plan.steps[number].case)):
                task = tuple(group)
                (early if _begun_early(plan.steps[task[0]].case) else singles).append(task)
    place = len(singles) // 4  # late enough that their files are made, and long before others have nothing left to do
    return Schedule((*sequences, *singles[:place], *early, *singles[place:]), tuple(alone))


def runs_beside(step: Step) -> bool:
    """Whether a step asks for nothing but a process on its GPU, and some of its memory."""
    placed, conditions = step.conditions.placed, step.conditions
    usual = conditions.timed and not step.together and (placed.usual or placed.one_visible)
    return usual and not checks.load(step.case.check).needs_idle_gpu(step.case)


def _begun_early(case: Case) -> bool:
    check = checks.load(case.check)
    return check.takes_long(case) or check.needs_memory(case) > 0


def run(
    queue: Queue,
    runners: Sequence[ChildRunner],
    attempt: Callable[[ChildRunner, int], Attempt],
    judge: Callable[[Attempt], None],
) -> Task:
    """Runs tasks, with each runner in a thread of its own; gives the steps that are still to be run alone.

    Those are the ones that lacked memory beside others, and those that no runner came to.

    Raises:
        Exception: what an attempt or the judge raised; no further task is begun then.
    """
    again: list[int] = []

    def lane(runner: ChildRunner) -> None:
        starts = True
        try:
            while not any(each.child.stuck for each in runners) and (task := queue.take(starts=starts)):
                starts = False
                for place, number in enumerate(task):
                    made = attempt(runner, number)
                    if runner is not runners[0] and not runner.child.started and not made.step.inapplicable:
                        queue.give_back(task, task[place:])  # the GPU takes no further process
                        return
                    if _lacked_memory(made):
                        remove_outputs(made)
                        again.append(number)
                    else:
                        judge(made)
                queue.done(task)
            if runner is not runners[0]:
                runner.child.retire()
        except BaseException:
            queue.drain()
            raise

    with ThreadPoolExecutor(len(runners), "lane") as threads:
        for ended in [threads.submit(lane, runner) for runner in runners]:
            ended.result()
    return (*again, *queue.drain())


def _lacked_memory(attempt: Attempt) -> bool:
    """Whether an attempt may have come to nothing for what other processes held at the same time."""
    reply = attempt.reply
    if reply and reply.status in ("ran", "harness"):
        return False
    inapplicable = bool(reply and reply.status == "inapplicable")
    return inapplicable or lacks_memory((reply or attempt.record).message)
