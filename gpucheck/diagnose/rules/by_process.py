"""Results that are decided anew in each process."""

from __future__ import annotations

from gpucheck.diagnose.causes import BY_PROCESS
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings, what
from gpucheck.model.record import Record
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """All calls of a process agree, and fresh processes do not."""
    return Evidence(BY_PROCESS, what(record)) if answers(run, record).by_process else None
