"""What a record shows, in one name: the kind of a finding, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from gpucheck.model.conditions import LONELY
from gpucheck.model.errors import UnusableGpu, UsageError
from gpucheck.model.record import Outcome, Record


@dataclass(frozen=True)
class Symptom:
    """A kind of finding."""

    title: str
    fix: str = ""
    across: bool = False  # cases of different matrix rows share one finding


BY_OUTCOME = {
    Outcome.MISMATCH: Symptom("wrong output"),
    Outcome.VIOLATION: Symptom("right output with a violation"),
    Outcome.ERROR: Symptom("the library or kernel raised"),
    Outcome.CRASH: Symptom("crash"),
    Outcome.HANG: Symptom("hang"),
    Outcome.LOST: Symptom("lost", "look at the rank's log in the run folder's logs/", across=True),
    Outcome.HARNESS: Symptom(
        "gpucheck could not judge",
        "this is a fault of gpucheck or of this machine's host side, not of the GPU",
        across=True,
    ),
    Outcome.INAPPLICABLE: Symptom(
        "inapplicable, though not marked optional",
        "use a library, Triton or machine that offers it, or mark the cases optional in the scenario",
        across=True,
    ),
}


VICTIM = Symptom(
    "victim of another rank",
    "nothing is known about this rank itself; look at the rank that is named",
    across=True,
)
ALONE = Symptom(
    "no other rank to run with",
    "give the run two ranks or more (--nproc 2): on GPUs one for each, on the CPU (--device cpu) as many as you like",
    across=True,
)
BAD_CHECK = Symptom("check that cannot be used", "the error is in the check's own file, not in gpucheck or the GPU")


UNUSABLE_GPU = Symptom(
    "a GPU that torch cannot use",
    "run gpucheck doctor: look at the driver, at the CUDA that torch is built for and at CUDA_VISIBLE_DEVICES",
    across=True,
)


def symptom(record: Record) -> Symptom:
    """What a record that no rule explains shows."""
    if record.victim_of is not None:
        return VICTIM
    if record.outcome is Outcome.INAPPLICABLE and record.message == LONELY:
        return ALONE
    if record.outcome is Outcome.HARNESS and record.message.startswith(UsageError.__name__):
        return BAD_CHECK
    if record.outcome is Outcome.HARNESS and UnusableGpu.__name__ in record.message:
        return UNUSABLE_GPU
    return BY_OUTCOME[record.outcome]
