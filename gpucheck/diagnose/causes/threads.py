"""State that threads of one process share."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import THREADS
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong among several threads, right with one."""
    seen = answers(run, record)
    return Evidence(THREADS, what(record)) if seen.separates(ExperimentName.ONE_THREAD) else None
