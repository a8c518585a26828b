"""Host code that computes something else as soon as a process group exists."""

from __future__ import annotations

from dataclasses import replace

from gpucheck.diagnose.causes import PROCESS_GROUP
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings, what
from gpucheck.model.record import Outcome, Record
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong with a process group, right on the same rank without: in an experiment, or where the plan has both."""
    conditions = run.plan.steps[record.step].conditions
    if conditions.process_group == "none":
        return None
    if answers(run, record).proves("no group", record) or _right_without(run, record):
        return Evidence(PROCESS_GROUP, what(record))
    return None


def _right_without(run: Run, record: Record) -> bool:
    planned = run.plan.steps[record.step]
    without = (replace(planned.conditions, process_group="none"), planned.case.id)
    return any(
        step.key == without and run.records[(number, record.rank)].outcome is Outcome.PASS
        for number, step in enumerate(run.plan.steps)
    )
