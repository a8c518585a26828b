"""Results that are decided anew in each process."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.records.run_folder import Run

BY_PROCESS = Cause(
    "decided anew in each process",
    means="Equal inputs give one result in some processes and another one in others, while all calls of one process "
    "agree. Something that each process takes once decides, such as an address, a random seed, a hash order, the "
    "autotuner's choice, or what other processes left behind or do at that moment.",
    shows="Some fresh processes fail in every call, the others in none, without any change.",
    confirm="Run the case in many processes (--isolate case and repeat in the scenario) with PYTHONHASHSEED=0, "
    "without address randomisation (setarch -R), and with the autotuner's choice fixed, one at a time.",
    fix="Make the choice depend on the arguments alone, or take it once and store it for all processes.",
)
CAUSES = (BY_PROCESS,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """All calls of a process agree, and fresh processes do not."""
    return Evidence(BY_PROCESS, error_summary(record)) if answers(run, record).by_process else None
