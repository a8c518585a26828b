"""State that threads of one process share."""

from __future__ import annotations

from gpucheck.diagnose.causes import THREADS
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings, what
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong among several threads, right with one."""
    seen = answers(run, record)
    return Evidence(THREADS, what(record)) if seen.separates(ExperimentName.ONE_THREAD) else None
