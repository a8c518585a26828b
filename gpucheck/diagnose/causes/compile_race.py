"""Processes that fill one empty cache at the same time."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

COMPILE_RACE = Cause(
    "compile race",
    means="Several processes compiled the same kernel into one empty cache at the same time, and one read a file that "
    "another had not finished writing.",
    shows="Wrong or raising on some ranks with a cold cache, right when a rank fills a cache of its own.",
    confirm="gpucheck run cache-race, several times.",
    fix="Let one process fill the cache before the others start, or give each rank its own TRITON_CACHE_DIR; keep "
    "the cache on a local disk, where a rename is atomic.",
)
CAUSES = (COMPILE_RACE,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong while all ranks fill a cold cache, right when this rank fills one of its own."""
    cold = run.plan.steps[record.step].conditions.cache == "cold"
    return (
        Evidence(COMPILE_RACE, error_summary(record))
        if cold and answers(run, record).right(ExperimentName.REPEAT)
        else None
    )
