"""Makes inputs and references of a rank before they are asked for, in processes of their own.

Threads of the supervisor would wait for its interpreter lock and its memory map, and it for theirs: with four of them
a rank on an H200 waited for inputs during a quarter of a gate's plan.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from gpucheck.host.resources import available_memory, usable_processors
from gpucheck.model.plan import Plan
from gpucheck.worker.supervisor import lanes, side_process
from gpucheck.worker.supervisor.case_files import CaseFiles

MAKERS = 8  # at most: processes of a rank
FILES_LIMIT = 8 << 30  # bytes of inputs and references made ahead of their use, at most
LARGEST = 3  # steps of each check that half of the processes begin with
WINDOW = 4  # steps per local rank; within such a window each rank has an order of its own
_RANK = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # of the environment


def worth_having(local_rank: int) -> bool:
    """Whether a rank has such processes: each takes memory, and more than there are processors make nothing sooner."""
    return local_rank < usable_processors()


class Makers:
    """The processes of one rank; they end when all is made, when they are closed, or with the supervisor."""

    def __init__(self, plan: Plan, processors: int) -> None:
        """Forks them from this process; call it before torch has computed anything here or a thread was started.

        Args:
            processors: of this rank; half of them are left to the child and to those who judge.
        """
        count = max(1, min(MAKERS, processors // 2, len(plan.steps)))
        at_once, threads = lanes.count(plan, processors), max(1, processors // 2 // count)
        makes = [partial(_make_all, plan, at_once, largest_first=number < count // 2) for number in range(count)]
        self._pids = [side_process.fork(plan, threads, work) for work in makes]

    def close(self) -> None:
        """Ends them, whatever they are at; what they have not finished leaves no file that anybody reads."""
        side_process.kill(self._pids)


def _make_all(plan: Plan, lane_count: int, *, largest_first: bool) -> None:
    """Makes what the rank of this process needs, in about the order that it will ask for it.

    Args:
        largest_first: what takes longest comes before all else, so that nobody waits for it when it is asked for.
    """
    rank, local_rank, local_ranks = (int(os.environ[name]) for name in _RANK)
    order = lanes.schedule(plan, rotated_order(plan, local_rank, local_ranks), lane_count).order
    if largest_first:
        first = plan.largest(order, LARGEST)
        order = [*first, *(number for number in order if number not in first)]
    make_ahead(CaseFiles.of(plan), plan.seen_by(rank), order, rank, room())


def room() -> int:
    """Bytes of files that are made ahead: they lie in memory, of which an eighth of what is free may go into them."""
    free = available_memory()
    return FILES_LIMIT if free is None else min(FILES_LIMIT, free // 8)


def make_ahead(files: CaseFiles, plan: Plan, order: Sequence[int], rank: int, limit: int = FILES_LIMIT) -> None:
    """Makes the files of each step in turn, except those that others make or have made.

    Args:
        rank: whose steps they are; what it is done with is not made again.
        limit: bytes of files; while there are more, nothing is made.
    """
    for number in order:
        files.wait_for_room(limit)
        step = plan.steps[number]
        with suppress(Exception):  # the step itself hits the same error and reports it
            if not step.inapplicable and not files.is_done(str(number), rank):
                files.make_ahead(str(number), step.case)


def rotated_order(plan: Plan, local_rank: int, local_ranks: int) -> list[int]:
    """The order in which a rank takes the steps.

    Within a window each rank starts at another step, so that ranks compile different kernels into the cache they share
    and make different inputs, but stay close enough together for files of limited size. Steps that ranks run together
    (in one process, or with one cold cache) have the same order on all of them.
    """
    order: list[int] = []

    def kind(number: int) -> tuple[str, str, bool]:
        conditions = plan.steps[number].conditions
        together = conditions.whole_node or conditions.together or conditions.cache == "cold"
        return conditions.placement, conditions.process_group, together

    for (_, _, together), group in itertools.groupby(range(len(plan.steps)), key=kind):
        steps = list(group)
        size = WINDOW * local_ranks
        for start in range(0, len(steps), size):
            window = steps[start : start + size]
            turn = 0 if together else local_rank * len(window) // local_ranks
            order += window[turn:] + window[:turn]
    return order
