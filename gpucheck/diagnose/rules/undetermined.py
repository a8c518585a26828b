"""Wrong outputs that the evidence does not explain; names the experiment that would."""

from __future__ import annotations

from gpucheck.diagnose.causes import UNDETERMINED
from gpucheck.diagnose.evidence import answers
from gpucheck.diagnose.rules.common import Evidence, findings, what
from gpucheck.model.record import Record
from gpucheck.records.folder import Run

__all__ = ["findings", "recognise"]


def recognise(run: Run, record: Record) -> Evidence | None:
    """Any wrong output that no other rule took."""
    return Evidence(UNDETERMINED, what(record), _next(run, record)) if record.mismatches else None


def _next(run: Run, record: Record) -> str:
    seen = answers(run, record)
    if "repeat" not in seen.tried:
        return "next: gpucheck run with --experiments 60, which repeats the case under changed conditions"
    if seen.right("repeat"):
        return "next: it did not come again; with repeat = 200 in the scenario it shows how often it does"
    if run.plan.world_size == 1:
        return "next: gpucheck run with --nproc 2, which tells the GPU from the code"
    if seen.right("other rank") and seen.right("other device"):
        return "next: rank and GPU only fail together; swap the GPUs with CUDA_VISIBLE_DEVICES and run again"
    return "next: no changed condition made it right; run it on other ranks and nodes, and bisect the library"
