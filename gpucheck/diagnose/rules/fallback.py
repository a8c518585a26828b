"""Calls that something else answers than the kernel under test."""

from __future__ import annotations

from gpucheck.diagnose.causes import FALLBACK
from gpucheck.diagnose.rules.common import Evidence, findings
from gpucheck.model.record import Record
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


SHOWN = {"fallback": "kernel under test not launched", "idle": "answer not made by the kernels launched"}
"""What is said of each violation kind."""


def recognise(run: Run, record: Record) -> Evidence | None:
    """No launch of a kernel under test, or launches that the answer does not need."""
    kinds = {violation.kind for violation in record.violations}
    return next((Evidence(FALLBACK, words) for kind, words in SHOWN.items() if kind in kinds), None)
