"""Failures that follow the GPU."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

SUSPECT_GPU = Cause(
    "suspect GPU",
    means="The failure follows the GPU: fresh processes fail on it again and again, whatever rank they are, and "
    "are right on another GPU.",
    shows="One column of the matrix fails, often by one bit, at different places or always at the same one.",
    confirm="Repeat with --repeat 100; nvidia-smi -q shows ECC counters and Xid errors; dcgmi diag -r 3; give the GPU "
    "to another rank with CUDA_VISIBLE_DEVICES and see whether the failure moves with it.",
    fix="Take the GPU out of service; nothing computed on it since the last good run can be trusted.",
)
CAUSES = (SUSPECT_GPU,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong again in fresh processes, whatever rank they are, and right on another GPU.

    A failure that did not come again is never the GPU's.
    """
    seen = answers(run, record)
    follows = (
        seen.wrong(ExperimentName.REPEAT)
        and seen.wrong(ExperimentName.OTHER_RANK)
        and seen.separates(ExperimentName.OTHER_DEVICE)
    )
    return Evidence(SUSPECT_GPU, error_summary(record)) if follows else None
