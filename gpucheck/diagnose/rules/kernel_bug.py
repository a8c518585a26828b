"""Code that computes the wrong thing."""

from __future__ import annotations

from gpucheck.diagnose.causes import KERNEL_BUG
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings, what
from gpucheck.model.record import Outcome, Record
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Every rank that judged the case gives the same wrong bits, and none of its repeats gives others.

    One rank alone cannot tell its GPU from the code; on the CPU there is no GPU to blame.
    """
    if not record.mismatches or answers(run, record).intermittent:
        return None
    judged = [
        other
        for other in (run.records[(record.step, rank)] for rank in run.ranks)
        if other.outcome in (Outcome.MISMATCH, Outcome.PASS, Outcome.VIOLATION)
    ]
    alike = all(
        other.mismatches and (other.digests == record.digests or other.inputs != record.inputs) for other in judged
    )
    enough = len(judged) > 1 or run.plan.device == "cpu"
    return Evidence(KERNEL_BUG, what(record)) if alike and enough else None
