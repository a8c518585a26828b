"""Ranks that disturb each other."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

INTERFERENCE = Cause(
    "interference between ranks",
    means="A rank fails only while other ranks of its node run: they share something that only one may use, or one "
    "of them faulted on the GPU of this one.",
    shows="Right with the other ranks idle, wrong with them running, every time; or a crash or hang that does not "
    "happen again, on a GPU where the driver (Xid) names the process of another rank as the one at fault.",
    confirm="gpucheck run SCENARIO --nproc 1 with the same case, then with all ranks.",
    fix="Look for what the ranks share: a file, a port, shared memory, a device they all use. Where another rank "
    "is named, fix that one first.",
)
CAUSES = (INTERFERENCE,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong every time beside other ranks, right alone."""
    seen = answers(run, record)
    return (
        Evidence(INTERFERENCE, error_summary(record))
        if seen.deterministic and seen.separates(ExperimentName.ALONE)
        else None
    )
