"""Kernels that a cache should not have handed out."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import DAMAGED_ENTRY, Outcome, Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

KERNEL_CACHE = Cause(
    "stale or mixed kernel cache",
    means="Triton's cache handed out a kernel that was not compiled from this source for this call: an entry is "
    "damaged, left by other software under the same key, or mixed up with another specialisation.",
    shows="Wrong or raising every time, right with an empty cache.",
    confirm="Run the case with TRITON_CACHE_DIR set to an empty folder; gpucheck doctor names damaged entries.",
    fix="Delete the cache folder (TRITON_CACHE_DIR, else ~/.triton/cache), and give each version of the software "
    "its own; never share one between containers with different images.",
)
CAUSES = (KERNEL_CACHE,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """An entry that cannot be read, or wrong every time and right with a fresh cache."""
    if record.outcome is Outcome.ERROR and DAMAGED_ENTRY in record.message:
        return Evidence(KERNEL_CACHE, DAMAGED_ENTRY)
    seen = answers(run, record)
    return Evidence(KERNEL_CACHE, error_summary(record)) if seen.separates(ExperimentName.FRESH_CACHE) else None
