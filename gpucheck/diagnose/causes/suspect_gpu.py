"""Failures that follow the GPU."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import SUSPECT_GPU
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

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
