"""Host code that computes something else as soon as a process group exists."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import PROCESS_GROUP
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong again with a process group, right without one.

    That the plan has the case without a group as well, and right, says little: the failure may not come again.
    """
    seen = answers(run, record)
    return Evidence(PROCESS_GROUP, what(record)) if seen.separates(ExperimentName.NO_GROUP) else None
