"""Results that differ between repeats on one GPU."""

from __future__ import annotations

from gpucheck.diagnose.causes import RACE
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings
from gpucheck.model.record import Record
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Equal inputs in equal memory gave different bits, within the case or when it was repeated."""
    if any(violation.kind == "repeats differ" for violation in record.violations):
        return Evidence(RACE, "repeats differ")
    differs = bool(record.mismatches) and answers(run, record).bits_differ
    return Evidence(RACE, "repeats differ") if differs else None
