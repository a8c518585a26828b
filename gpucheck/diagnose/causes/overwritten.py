"""Outputs in memory that the library uses again."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import OVERWRITTEN
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong where outputs are read after a further call, right where they are read before it."""
    delayed = run.plan.steps[record.step].conditions.consumer == "delayed"
    overwritten = delayed and answers(run, record).separates(ExperimentName.WAITS)
    return Evidence(OVERWRITTEN, what(record)) if overwritten else None
