"""How often a candidate must pass before it is believed, from how often the bad end fails."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

LIMIT = 0.01  # largest chance to take a candidate with the fault for one without
FEWEST = 5  # runs of the bad end, where all of them show the fault
USUAL = 10  # where some do
MOST = 60
WORTH = 3  # more runs of the bad end are cheaper than this many times as many passes of every candidate


@dataclass(frozen=True)
class Rate:
    """What the runs of the bad end say."""

    failed: int
    runs: int
    passes: int  # in a row that make a candidate good

    @property
    def missed(self) -> float:
        """Chance that a candidate that fails as the bad end does passes so often, and is taken for good."""
        return chance_missed(self.failed, self.runs, self.passes)


def enough(failed: int, runs: int) -> bool:
    """Whether the bad end has been run often enough to say how often a candidate must pass."""
    if failed == runs or failed == 0:
        return runs >= (FEWEST if failed else USUAL)
    return runs >= MOST or (runs >= USUAL and estimate(failed, runs).passes <= WORTH * runs)


def chance_missed(failed: int, runs: int, passes: int) -> float:
    """The chance that a fault which showed in ``failed`` of ``runs`` stays away ``passes`` times in a row.

    The rate itself is uncertain: it is integrated over its posterior. Before the runs, half of the belief lies on a
    fault that always shows, since most do, and half is spread evenly over all rates.
    """
    uniform = math.prod((runs - failed + 1 + number) / (runs + 2 + number) for number in range(passes))
    always = (runs + 1) / (runs + 2) if failed == runs else 0.0
    return (1 - always) * uniform


@functools.cache
def estimate(failed: int, runs: int) -> Rate:
    """The fewest passes whose chance to miss the fault is below :data:`LIMIT`.

    Raises:
        ValueError: the fault was not seen.
    """
    if not 0 < failed <= runs:
        raise ValueError("the fault must have shown")
    passes = next(number for number in itertools.count(1) if chance_missed(failed, runs, number) < LIMIT)
    return Rate(failed, runs, passes)
