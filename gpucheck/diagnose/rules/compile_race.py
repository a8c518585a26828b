"""Processes that fill one empty cache at the same time."""

from __future__ import annotations

from gpucheck.diagnose.causes import COMPILE_RACE
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings, what
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong while all ranks fill a cold cache, right when this rank fills one of its own."""
    cold = run.plan.steps[record.step].conditions.cache == "cold"
    return Evidence(COMPILE_RACE, what(record)) if cold and answers(run, record).right(ExperimentName.REPEAT) else None
