"""Kernels that a cache should not have handed out."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import KERNEL_CACHE
from gpucheck.model.record import DAMAGED_ENTRY, Outcome, Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """An entry that cannot be read, or wrong every time and right with a fresh cache."""
    if record.outcome is Outcome.ERROR and DAMAGED_ENTRY in record.message:
        return Evidence(KERNEL_CACHE, DAMAGED_ENTRY)
    seen = answers(run, record)
    return Evidence(KERNEL_CACHE, what(record)) if seen.separates(ExperimentName.FRESH_CACHE) else None
