"""Processes that fill one empty cache at the same time."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import COMPILE_RACE
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong while all ranks fill a cold cache, right when this rank fills one of its own."""
    cold = run.plan.steps[record.step].conditions.cache == "cold"
    return Evidence(COMPILE_RACE, what(record)) if cold and answers(run, record).right(ExperimentName.REPEAT) else None
