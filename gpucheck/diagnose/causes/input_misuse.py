"""Calls whose answer does not come from their inputs, or that do more than answer."""

from __future__ import annotations

from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import ALIASED, CHANGES_INPUTS, NOT_AS_ASKED, NOT_FROM_INPUTS, OVERWRITTEN, SETTINGS
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]

SHOWN = {
    ViolationKind.CACHED: NOT_FROM_INPUTS,
    ViolationKind.CALLS_DIFFER: NOT_FROM_INPUTS,
    ViolationKind.INPUTS: CHANGES_INPUTS,
    ViolationKind.ALIAS: ALIASED,
    ViolationKind.REUSED: OVERWRITTEN,
    ViolationKind.SETTINGS: SETTINGS,
}
"""Cause by violation kind, the more telling first."""
FORM = (ViolationKind.OUTPUT, ViolationKind.LAYOUT)
"""Violation kinds that say how an output looks; wrong numbers, or a call that was answered otherwise, tell more."""

OF_KEPT_ANSWERS = (ViolationKind.FALLBACK, ViolationKind.LAUNCHES, ViolationKind.REUSED)
"""Violation kinds that an answer which is kept brings about: too few launches, and memory that is handed out twice."""


def recognise(run: Run, record: Record) -> Evidence | None:
    """The call did something to its inputs or to its process beside answering, or took its answer from elsewhere.

    A kept answer explains that nothing was launched and that passes differ; a store outside of tensors explains that
    inputs change.
    """
    kinds = {violation.kind for violation in record.violations}
    if ViolationKind.GUARD in kinds:
        return None
    cause = next((cause for kind, cause in SHOWN.items() if kind in kinds), "")
    if kinds & set(OF_KEPT_ANSWERS) and _keeps_answers(run, record):
        cause = NOT_FROM_INPUTS
    if not cause and kinds and kinds <= set(FORM) and not record.mismatches:
        cause = NOT_AS_ASKED
    detail = what(record) if cause == OVERWRITTEN and record.mismatches else ""
    return Evidence(cause, detail, across=False) if cause else None


def _keeps_answers(run: Run, record: Record) -> bool:
    """Whether the candidate was shown to, on this rank, by the further calls after one of its cases."""
    check = run.plan.steps[record.step].case.check
    return check in run.plan.candidates and any(
        violation.kind is ViolationKind.CACHED
        for (step, rank), other in run.records.items()
        if rank == record.rank and run.plan.steps[step].case.check == check
        for violation in other.violations
    )
