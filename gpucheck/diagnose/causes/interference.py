"""Ranks that disturb each other."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import INTERFERENCE
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong every time beside other ranks, right alone."""
    seen = answers(run, record)
    return Evidence(INTERFERENCE, what(record)) if seen.deterministic and seen.separates(ExperimentName.ALONE) else None
