"""Experiments: follow-up attempts of a failing case under one changed condition, whose answers tell causes apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gpucheck.diagnose.calls import TELLING
from gpucheck.diagnose.chance import CALLS, calls_needed
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record
from gpucheck.model.vocabulary import ViolationKind

REPEAT = "repeat"
HISTORY = "history"
BLOCKING = "synchronised"
REPEATS = 5  # fresh processes in which the unchanged case runs again

Change = Callable[[Conditions], Conditions | None]
"""The changed conditions; None where that changes nothing."""


@dataclass(frozen=True)
class Experiment:
    """One changed condition."""

    name: str  # as records carry it
    words: str  # completes "right" and "wrong" in a report
    change: Change
    needs_gpu: bool = False
    alone: bool = False  # no other rank of the node may run anything meanwhile


def _one_thread(conditions: Conditions) -> Conditions | None:
    if conditions.concurrency > 1:
        return replace(conditions, concurrency=1)
    return replace(conditions, placement=Conditions().placement) if conditions.placed.threads else None


def _set(**changes: object) -> Change:
    def change(conditions: Conditions) -> Conditions | None:
        changed = replace(conditions, **changes)  # type: ignore[arg-type]
        return None if changed == conditions else changed

    return change


def _visible(conditions: Conditions) -> Conditions | None:
    return None if conditions.placed.one_visible else replace(conditions, placement="visible", warm_up=False)


def _guarded(conditions: Conditions) -> Conditions | None:
    return None if conditions.placed.device_current else replace(conditions, guarded=True)


EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(REPEAT, "alone in a fresh process", lambda c: c),
        Experiment(HISTORY, "after the cases that its process ran before", lambda c: c),
        Experiment("no group", "without a process group", _set(process_group="none")),
        Experiment("one thread", "with one thread", _one_thread),
        Experiment("waits", "with a consumer that waits", _set(consumer="waits")),
        Experiment("guarded", "under a device guard", _guarded, needs_gpu=True),
        Experiment("other rank", "with the environment of another rank", _set(swap="rank")),
        Experiment("other device", "on the device of another rank", _set(swap="device")),
        Experiment(BLOCKING, "with synchronised launches", _set(synchronised=True), needs_gpu=True),
        Experiment("visible", "with one visible GPU", _visible, needs_gpu=True),
        Experiment("fresh cache", "with a fresh kernel cache", _set(cache="fresh"), needs_gpu=True),
        Experiment("alone", "with the other ranks at rest", _set(alone=True), alone=True),
    )
}
"""By name, in the order they are tried: what tells most, and what costs most at the end."""

SWAPS = ("other rank", "other device")
"""Experiments in which another rank of the node lends something."""
STRESSES = ("no group", "one thread", "waits")
"""Experiments that take away what makes calls of one process differ."""
SETTLING = (*STRESSES, "fresh cache")
"""Experiments after which a cause is known."""
OF_FILL = ("no group", "one thread", "guarded")
"""All, beside repeating, that can change what is said of outputs that follow what memory held."""
ALWAYS_ASKED = (*STRESSES, *SWAPS, BLOCKING)
"""What must have been tried, and not have helped, before calls that differ are called a race."""

_OF_OUTCOME = {
    Outcome.MISMATCH: tuple(EXPERIMENTS),
    Outcome.ERROR: tuple(EXPERIMENTS),
    Outcome.CRASH: (REPEAT, HISTORY, "no group", "one thread", BLOCKING, "fresh cache", "alone"),
    Outcome.HANG: ("one thread", "alone"),
}
_OF_VIOLATION = {
    ViolationKind.DEVICE: ("guarded", "visible"),
    ViolationKind.TUNING_DIFFERS: (REPEAT,),
    ViolationKind.PASSES_DIFFER: (REPEAT, *OF_FILL),
    ViolationKind.REPEATS_DIFFER: tuple(name for name in EXPERIMENTS if name not in ("guarded", "fresh cache")),
}


def applicable(record: Record, conditions: Conditions, device: str, ranks: int) -> list[tuple[str, Conditions]]:
    """The experiments that can tell something about a failed record, with the conditions of each.

    Args:
        conditions: that it failed under.
        device: "cuda" or "cpu".
        ranks: of its node.
    """
    names = _OF_OUTCOME.get(record.outcome, ())
    if record.outcome is Outcome.VIOLATION:
        kinds = {violation.kind for violation in record.violations}
        names = tuple(name for name in EXPERIMENTS if any(name in _OF_VIOLATION.get(kind, ()) for kind in kinds))
    found = []
    for name in names:
        experiment = EXPERIMENTS[name]
        if experiment.needs_gpu and device != "cuda":
            continue
        if name in (*SWAPS, "alone") and (ranks < 2 or conditions.whole_node):
            continue
        if name == "other device" and not conditions.placed.device_current:
            continue  # on device 0 there is nothing left to be off from
        changed = experiment.change(conditions)
        if changed is not None:
            found.append((name, changed))
    return found


def needs_pinning(record: Record, plan: Plan) -> bool:
    """Whether a failure came up after the launch that it belongs to, as GPUs report theirs, so that none can be named.

    In the interpreter, and where all launches are waited for, it comes up at the launch itself.
    """
    asynchronous = plan.device == "cuda" and not (plan.debug or plan.steps[record.step].conditions.synchronised)
    hung_in_a_launch = record.outcome is Outcome.HANG and record.underway is not None
    return asynchronous and (record.sticky or hung_in_a_launch)


def rate_of(*attempts: Record) -> float:
    """Share of calls that failed; an error, crash or hang counts as one of one."""
    bad = made = 0
    for attempt in attempts:
        calls = len(attempt.calls) or attempt.asked or attempt.repeats
        made += calls if attempt.mismatches or not attempt.outcome.failed else 1
        if attempt.outcome.failed:
            bad += len(attempt.bad_calls) or (calls if attempt.mismatches else 1)
    return bad / made


def calls_asked(failure: Record, first: Record | None, conditions: Conditions) -> int:
    """How many calls each further process of an experiment is to make: as many in all, so that they compare.

    Args:
        first: the first repetition in a fresh process, which makes CALLS; None before it.
        conditions: that the case failed under.
    """
    usual = max(CALLS, conditions.repeat)
    if first is None or not first.mismatches or first.by_fill:
        return usual
    return max(usual, calls_needed(rate_of(failure, first))) if first.calls else max(TELLING, conditions.repeat)
