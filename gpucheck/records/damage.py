"""A run folder that was damaged, or edited, so that something in it is not of the type that gpucheck writes.

Looking at everything takes time that a whole run folder is not worth, so it is done once something went wrong over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from gpucheck.model.errors import UsageError
from gpucheck.model.plain import matches, misfit
from gpucheck.records.run_folder import Run

LATEST = 253402300799.0  # s since the epoch, of the year 9999


class _Node(TypedDict, total=False):
    number: int
    host: str
    state: str
    code: int | None
    software: dict[str, Any] | None


class _Outcome(TypedDict, total=False):
    code: int | None
    timed_out: bool
    signal: int
    seconds: float
    stuck: str
    said: list[str]
    changes: list[str]
    nodes: list[_Node]


class _Start(TypedDict, total=False):
    host: str
    import_seconds: float


class _Message(TypedDict, total=False):
    rank: int | None
    text: str
    kind: str
    number: int


class _Software(TypedDict, total=False):
    torch: dict[str, Any] | None
    triton: dict[str, Any] | None
    triton_kernels: dict[str, Any] | None


@contextmanager
def explained_by_damage(*runs: Run) -> Iterator[None]:
    """Makes an error of what works on runs one of their folders, where something in these is not as it was written.

    Raises:
        UsageError: which file is damaged, and where; an error for which no folder is to blame stays as it is.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        for run in runs:
            if words := damage(run):
                raise UsageError(f"{run.folder} is damaged: {words}; was it edited?") from error
        raise


def damage(run: Run) -> str:
    """What in a run folder is of another type than gpucheck writes, in words; "" where nothing is."""
    plan = misfit(run.plan) or ("" if 0 <= run.plan.created <= LATEST else f"created is {run.plan.created!r}")
    if not plan and not matches(_Software, run.plan.environment.get("software", {})):
        plan = "its software is not told as it should be"
    if plan:
        return f"plan.json: {plan}"
    seconds = run.outcome.get("seconds", 0.0)
    if not matches(_Outcome, run.outcome) or not math.isfinite(seconds) or not 0 <= seconds <= LATEST:
        return "outcome.json"
    if not matches(list[_Message], run.driver):
        return "driver-*.json"
    others = [*run.canary, *(each for kinds in run.experiments.values() for each in sum(kinds.values(), []))]
    for record in [*run.records.values(), *others]:
        if words := misfit(record):
            return _of_rank(record.rank, words)
    for rank, start in run.starts.items():
        if not matches(_Start, start):
            return _of_rank(rank, "its start line")
    for rank, end in run.ends.items():
        if not matches(dict[str, Any], end) or not all(isinstance(value, (int, float, str)) for value in end.values()):
            return _of_rank(rank, "its end line")
    return ""


def _of_rank(rank: int, words: str) -> str:
    return f"{Path('records', f'rank-{rank:05d}.jsonl')}: {words}"
