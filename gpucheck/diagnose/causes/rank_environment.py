"""Failures that follow the environment of a rank."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import RANK_ENVIRONMENT
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Right with another rank's environment on the same GPU, and not right with the own one on another GPU."""
    seen = answers(run, record)
    follows = seen.separates(ExperimentName.OTHER_RANK) and not seen.right(ExperimentName.OTHER_DEVICE)
    return Evidence(RANK_ENVIRONMENT, what(record)) if follows else None
