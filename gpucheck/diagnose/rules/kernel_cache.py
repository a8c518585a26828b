"""Kernels that a cache should not have handed out."""

from __future__ import annotations

from gpucheck.diagnose.causes import KERNEL_CACHE
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings, what
from gpucheck.model.record import DAMAGED_ENTRY, Outcome, Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """An entry that cannot be read, or wrong every time and right with a fresh cache."""
    if record.outcome is Outcome.ERROR and DAMAGED_ENTRY in record.message:
        return Evidence(KERNEL_CACHE, DAMAGED_ENTRY)
    seen = answers(run, record)
    return Evidence(KERNEL_CACHE, what(record)) if seen.separates(ExperimentName.FRESH_CACHE) else None
