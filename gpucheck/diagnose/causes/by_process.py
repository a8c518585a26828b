"""Results that are decided anew in each process."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import BY_PROCESS
from gpucheck.model.record import Record
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """All calls of a process agree, and fresh processes do not."""
    return Evidence(BY_PROCESS, what(record)) if answers(run, record).by_process else None
