"""Failures that follow the environment of a rank."""

from __future__ import annotations

from gpucheck.diagnose.causes import RANK_ENVIRONMENT
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings, what
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Right with another rank's environment on the same GPU, and not right with the own one on another GPU."""
    seen = answers(run, record)
    follows = seen.separates(ExperimentName.OTHER_RANK) and not seen.right(ExperimentName.OTHER_DEVICE)
    return Evidence(RANK_ENVIRONMENT, what(record)) if follows else None
