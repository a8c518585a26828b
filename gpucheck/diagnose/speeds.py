"""How fast ranks were: times of calls, and which of them can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpucheck.model.record import Ceilings, Outcome, Record
from gpucheck.records.run_folder import Run


def call_seconds(record: Record, what: str = "call") -> float | None:
    """The time of the call under test, or of plain torch; None where it was not measured."""
    seconds = record.timings.get(what)
    return seconds if isinstance(seconds, (int, float)) and 0 < seconds < math.inf else None


def peers(run: Run, record: Record) -> list[Record]:
    """The records of other ranks with GPUs of the same kind whose same case is right and was timed.

    What ranks do together takes all of them as long: nobody is slower at it than others.
    """
    if run.plan.steps[record.step].together:
        return []
    others = (run.records[(record.step, rank)] for rank in run.ranks if rank != record.rank)
    return [
        other
        for other in others
        if other.outcome is Outcome.PASS and other.device == record.device and call_seconds(other) is not None
    ]


def ceilings(run: Run, rank: int) -> Ceilings | None:
    """The best that a rank's GPU reached; None where it was not measured."""
    measured = [record.ceilings for (_, of), record in run.records.items() if of == rank and record.ceilings]
    if not measured:
        return None
    return Ceilings(max(each.flops for each in measured), max(each.bytes for each in measured))


def geometric_mean(factors: Iterable[float]) -> float:
    """Of at least one factor above 0."""
    logarithms = [math.log(factor) for factor in factors]
    return math.exp(sum(logarithms) / len(logarithms))
