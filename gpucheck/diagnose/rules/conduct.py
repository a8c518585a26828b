"""Calls whose answer does not come from their inputs, or that do more than answer."""

from __future__ import annotations

from gpucheck.diagnose.causes import ALIASED, CHANGES_INPUTS, NOT_FROM_INPUTS
from gpucheck.diagnose.rules.common import Evidence, findings
from gpucheck.model.record import Record
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]

SHOWN = {"cached": NOT_FROM_INPUTS, "inputs": CHANGES_INPUTS, "alias": ALIASED}
"""Cause by violation kind, the more telling first."""


def recognise(run: Run, record: Record) -> Evidence | None:
    """The check saw, beside the numbers, what the call did to its inputs or took its answer from.

    A kept answer explains that nothing was launched and that passes differ; a store outside of tensors explains that
    inputs change.
    """
    kinds = {violation.kind for violation in record.violations}
    if "guard" in kinds:
        return None
    return next((Evidence(cause, across=False) for kind, cause in SHOWN.items() if kind in kinds), None)
