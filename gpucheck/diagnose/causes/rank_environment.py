"""Failures that follow the environment of a rank."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

RANK_ENVIRONMENT = Cause(
    "environment of a rank",
    means="The failure follows the environment of a rank (RANK, LOCAL_RANK and what is derived from them), not the "
    "GPU it runs on.",
    shows="Wrong on one rank; right there with another rank's environment, wrong with its own on another GPU.",
    confirm="Compare the environment variables of the ranks, and look at what host code does with them.",
    fix="Fix the code that reads the variable, or the launcher that sets it differently on this rank.",
)
CAUSES = (RANK_ENVIRONMENT,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Right with another rank's environment on the same GPU, and not right with the own one on another GPU."""
    seen = answers(run, record)
    follows = seen.separates(ExperimentName.OTHER_RANK) and not seen.right(ExperimentName.OTHER_DEVICE)
    return Evidence(RANK_ENVIRONMENT, error_summary(record)) if follows else None
