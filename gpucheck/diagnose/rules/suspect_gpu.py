"""Failures that follow the GPU."""

from __future__ import annotations

from gpucheck.diagnose.causes import SUSPECT_GPU
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings, what
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong again in fresh processes, whatever rank they are, and right on another GPU.

    A failure that did not come again is never the GPU's.
    """
    seen = answers(run, record)
    follows = (
        seen.wrong(ExperimentName.REPEAT)
        and seen.wrong(ExperimentName.OTHER_RANK)
        and seen.separates(ExperimentName.OTHER_DEVICE)
    )
    return Evidence(SUSPECT_GPU, what(record)) if follows else None
