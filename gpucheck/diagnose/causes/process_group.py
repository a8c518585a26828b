"""Host code that computes something else as soon as a process group exists."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

PROCESS_GROUP = Cause(
    "dependence on the process group",
    means="Host code computes something else as soon as torch.distributed is initialised, or depending on RANK or "
    "LOCAL_RANK: it takes the group for expert or tensor parallelism, but every rank holds the whole model.",
    shows="Right without a process group, wrong with one. With experts sliced by rank, rank 0 computes its share of "
    "the experts, so its text is fluent but poorer; ranks above use wrong experts, and their text makes no "
    "sense. Kernels, caches and GPUs are not at fault.",
    confirm="gpucheck run SCENARIO --process-group none, then --process-group initialised, with the same case.",
    fix="Make the caller decide by its own configuration (is expert parallelism on, how many experts does this "
    "rank hold) and not by the existence of a process group.",
)
CAUSES = (PROCESS_GROUP,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong again with a process group, right without one.

    That the plan has the case without a group as well, and right, says little: the failure may not come again.
    """
    seen = answers(run, record)
    return Evidence(PROCESS_GROUP, error_summary(record)) if seen.separates(ExperimentName.NO_GROUP) else None
