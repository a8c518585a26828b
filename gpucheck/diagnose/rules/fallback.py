"""Calls that something else answers than the kernel under test."""

from __future__ import annotations

from gpucheck.diagnose.causes import FALLBACK
from gpucheck.diagnose.rules.common import Evidence, findings
from gpucheck.model.record import Record
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """No launch of a kernel under test."""
    missing = any(violation.kind == "fallback" for violation in record.violations)
    return Evidence(FALLBACK, "kernel under test not launched") if missing else None
