"""Outputs in memory that the library uses again."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

OVERWRITTEN = Cause(
    "output overwritten by a later call",
    means="The output lies in memory that the library keeps and uses again: the next call on other data overwrites it "
    "before the caller has read it.",
    shows="Right when outputs are read at once, another call's numbers when they are read after it.",
    confirm="gpucheck run order: the cases with a delayed consumer.",
    fix="Return fresh memory, or copy the output out of the scratch buffer before the call returns.",
)
CAUSES = (OVERWRITTEN,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong where outputs are read after a further call, right where they are read before it."""
    delayed = run.plan.steps[record.step].conditions.consumer == "delayed"
    overwritten = delayed and answers(run, record).separates(ExperimentName.WAITS)
    return Evidence(OVERWRITTEN, error_summary(record)) if overwritten else None
