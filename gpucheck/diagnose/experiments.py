"""Experiments: follow-up attempts of a failing case under one changed condition, whose answers tell causes apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpucheck.model.conditions import OFF_DEVICE, Conditions
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record

REPEAT = "repeat"
BLOCKING = "synchronised"
REPEATS = 5  # times at least that the unchanged case runs again in a fresh process
MOST_REPEATS = 200  # of one experiment, however seldom a failure shows
LUCK = 1e-3  # largest probability that a failure which comes and goes stayed away by chance

Change = Callable[[Conditions], Conditions | None]
"""The changed conditions; None where that changes nothing."""


@dataclass(frozen=True)
class Experiment:
    """One changed condition."""

    name: str  # as records carry it
    words: str  # completes "right" and "wrong" in a report
    change: Change
    needs_gpu: bool = False


def _one_thread(conditions: Conditions) -> Conditions | None:
    if conditions.concurrency > 1:
        return replace(conditions, concurrency=1)
    return replace(conditions, placement="pinned") if conditions.placement.startswith("threads") else None


def _set(**changes: object) -> Change:
    def change(conditions: Conditions) -> Conditions | None:
        changed = replace(conditions, **changes)  # type: ignore[arg-type]
        return None if changed == conditions else changed

    return change


def _visible(conditions: Conditions) -> Conditions | None:
    return replace(conditions, placement="visible", warm_up=False) if conditions.placement != "visible" else None


def _guarded(conditions: Conditions) -> Conditions | None:
    return replace(conditions, guarded=True) if conditions.placement in OFF_DEVICE else None


EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(REPEAT, "repeated in a fresh process", lambda c: replace(c, repeat=max(REPEATS, c.repeat))),
        Experiment("no group", "without a process group", _set(process_group="none")),
        Experiment("one thread", "with one thread", _one_thread),
        Experiment("waits", "with a consumer that waits", _set(consumer="waits")),
        Experiment("guarded", "under a device guard", _guarded, needs_gpu=True),
        Experiment("other rank", "with the environment of another rank", _set(swap="rank")),
        Experiment("other device", "on the device of another rank", _set(swap="device")),
        Experiment(BLOCKING, "with synchronised launches", _set(synchronised=True), needs_gpu=True),
        Experiment("visible", "with one visible GPU", _visible, needs_gpu=True),
        Experiment("fresh cache", "with a fresh kernel cache", _set(cache="fresh"), needs_gpu=True),
        Experiment("alone", "with the other ranks at rest", _set(alone=True)),
    )
}
"""By name, in the order they are tried: what tells most, and what costs most at the end."""

_OF_OUTCOME = {
    Outcome.MISMATCH: tuple(EXPERIMENTS),
    Outcome.ERROR: tuple(EXPERIMENTS),
    Outcome.CRASH: (REPEAT, "no group", "one thread", BLOCKING, "fresh cache", "alone"),
    Outcome.HANG: ("one thread", "alone"),
}
_OF_VIOLATION = {
    "device": ("guarded", "visible"),
    "tuning differs": ("repeat",),
    "repeats differ": ("repeat", "one thread", "synchronised", "visible", "other device", "alone"),
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
        if name in ("other rank", "other device", "alone") and (ranks < 2 or conditions.whole_node):
            continue
        if name == "other device" and conditions.placement in OFF_DEVICE:
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
    """Share of launches that failed; an error, crash or hang counts as one of one."""
    bad = sum(attempt.wrong or attempt.outcome.failed for attempt in attempts)
    return bad / sum(attempt.repeats if attempt.wrong or not attempt.outcome.failed else 1 for attempt in attempts)


def repeats_needed(rate: float) -> int:
    """How often a case that fails at this rate must be right before luck is ruled out."""
    if rate >= 1:
        return 1
    return min(MOST_REPEATS, math.ceil(math.log(LUCK) / math.log(1 - rate))) if rate > 0 else MOST_REPEATS
