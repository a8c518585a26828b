"""What a record shows, in one name: the kind of a finding, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from gpucheck.model.record import Outcome, Record


@dataclass(frozen=True)
class Symptom:
    """A kind of finding."""

    title: str
    remedy: str = ""
    across: bool = False  # cases of different matrix rows share one finding


BY_VIOLATION = {
    "guard": Symptom(
        "writes outside of its tensors",
        "a store mask or a grid is too wide; compute-sanitizer --tool memcheck names the instruction",
        across=True,
    ),
    "passes differ": Symptom(
        "reads outside of its tensors",
        "a load past the end without mask, or memory never written; the result depends on what lies there: pad the "
        "named tensor, or use a library whose kernel masks that load",
        across=True,
    ),
    "repeats differ": Symptom("not repeatable", "a missing barrier, atomics, or a read that races with a write"),
    "fallback": Symptom("kernel under test not launched", "the call was answered by something else", across=True),
    "cached": Symptom(
        "answers from an earlier call", "what is kept between calls must be keyed by content, or not kept"
    ),
    "inputs": Symptom(
        "changes its inputs", "whoever uses an input again gets other results: write to memory of its own"
    ),
    "alias": Symptom(
        "output in the memory of an input", "whoever writes to the one changes the other: return memory of its own"
    ),
}
"""By violation kind, the most telling first."""

BY_OUTCOME = {
    Outcome.MISMATCH: Symptom("wrong output"),
    Outcome.VIOLATION: Symptom("right output, wrong conduct"),
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


def symptom(record: Record) -> Symptom:
    """The most telling thing a record that did not pass shows."""
    kinds = {violation.kind for violation in record.violations}
    return next((found for kind, found in BY_VIOLATION.items() if kind in kinds), BY_OUTCOME[record.outcome])
