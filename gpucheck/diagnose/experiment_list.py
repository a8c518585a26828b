"""Experiments: follow-up attempts of a failing case under one changed condition, whose answers tell causes apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gpucheck.diagnose.chance import CALLS, calls_needed
from gpucheck.diagnose.differing_calls import TELLING
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record
from gpucheck.model.vocabulary import ExperimentName, ViolationKind

REPEAT, HISTORY, BLOCKING = ExperimentName.REPEAT, ExperimentName.HISTORY, ExperimentName.SYNCHRONISED
REPEATS = 5  # fresh processes in which the unchanged case runs again

ANSWERED = (Outcome.MISMATCH, Outcome.ERROR)
ENDED = (*ANSWERED, Outcome.CRASH)
Change = Callable[[Conditions], Conditions | None]
"""The changed conditions; None where that changes nothing."""


@dataclass(frozen=True)
class Experiment:
    """One changed condition, and everything that is to be known of it.

    To add one, add its name to :class:`ExperimentName` and a row to ``EXPERIMENTS``.
    """

    name: ExperimentName
    words: str  # completes "right" and "wrong" in a report
    change: Change
    outcomes: tuple[Outcome, ...] = ANSWERED  # of a failure that it can tell something about
    violations: tuple[ViolationKind, ...] = (ViolationKind.REPEATS_DIFFER,)  # any of which it can tell something about
    needs_gpu: bool = False
    alone: bool = False  # no other rank of the node may run anything meanwhile
    lends: bool = False  # another rank of the node lends its environment or its device
    slow: bool = False  # it compiles, so it is begun before others
    calms: bool = False  # takes away what makes calls of one process differ
    settles: bool = False  # a cause is known where it makes the case right
    together: bool = False  # ranks make it together with a case that they run together; no other applies to such a case
    before_race: bool = False  # must have been tried, and not have helped, before calls that differ are called a race

    @property
    def of_fill(self) -> bool:
        """Whether it can change what is said of outputs that follow what memory held; repeating only counts them."""
        return ViolationKind.PASSES_DIFFER in self.violations and self.name is not REPEAT


def _one_thread(conditions: Conditions) -> Conditions | None:
    if conditions.concurrency > 1:
        return replace(conditions, concurrency=1)
    return replace(conditions, placement=Conditions().placement) if conditions.placed.threads else None


def _set(**changes: object) -> Change:
    def change(conditions: Conditions) -> Conditions | None:
        changed = replace(conditions, **changes)  # type: ignore[arg-type]
        return None if changed == conditions else changed

    return change


def _in_step(conditions: Conditions) -> Conditions | None:
    return replace(conditions, in_step=True) if conditions.together and not conditions.in_step else None


def _visible(conditions: Conditions) -> Conditions | None:
    return None if conditions.placed.one_visible else replace(conditions, placement="visible", warm_up=False)


def _guarded(conditions: Conditions) -> Conditions | None:
    return None if conditions.placed.device_current else replace(conditions, guarded=True)


def _other_device(conditions: Conditions) -> Conditions | None:
    if not conditions.placed.device_current:
        return None  # with device 0 current there is nothing left to be off from
    return replace(conditions, swap="device")


PASSES, REPEATED = ViolationKind.PASSES_DIFFER, ViolationKind.REPEATS_DIFFER

EXPERIMENTS: dict[ExperimentName, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            REPEAT,
            "alone in a fresh process",
            lambda conditions: conditions,
            outcomes=ENDED,
            violations=(ViolationKind.TUNING_DIFFERS, PASSES, REPEATED),
            together=True,
        ),
        Experiment(
            HISTORY, "after the cases that its process ran before", lambda conditions: conditions, outcomes=ENDED
        ),
        Experiment(
            ExperimentName.NO_GROUP,
            "without a process group",
            _set(process_group="none"),
            outcomes=ENDED,
            violations=(PASSES, REPEATED),
            calms=True,
            settles=True,
            before_race=True,
        ),
        Experiment(
            ExperimentName.IN_STEP,
            "with the ranks in step, each operation waited for",
            _in_step,
            violations=(PASSES, REPEATED),
            together=True,
            settles=True,
        ),
        Experiment(
            ExperimentName.ONE_THREAD,
            "with one thread",
            _one_thread,
            outcomes=(*ENDED, Outcome.HANG),
            violations=(PASSES, REPEATED),
            calms=True,
            settles=True,
            before_race=True,
        ),
        Experiment(
            ExperimentName.WAITS,
            "with a consumer that waits",
            _set(consumer="waits"),
            calms=True,
            settles=True,
            before_race=True,
        ),
        Experiment(
            ExperimentName.GUARDED,
            "under a device guard",
            _guarded,
            violations=(ViolationKind.DEVICE, PASSES),
            needs_gpu=True,
        ),
        Experiment(
            ExperimentName.OTHER_RANK,
            "with the environment of another rank",
            _set(swap="rank"),
            lends=True,
            before_race=True,
        ),
        Experiment(
            ExperimentName.OTHER_DEVICE, "on the device of another rank", _other_device, lends=True, before_race=True
        ),
        Experiment(
            BLOCKING,
            "with synchronised launches",
            _set(synchronised=True),
            outcomes=ENDED,
            needs_gpu=True,
            before_race=True,
        ),
        Experiment(
            ExperimentName.VISIBLE,
            "with one visible GPU",
            _visible,
            violations=(ViolationKind.DEVICE, REPEATED),
            needs_gpu=True,
        ),
        Experiment(
            ExperimentName.FRESH_CACHE,
            "with a fresh kernel cache",
            _set(cache="fresh"),
            outcomes=ENDED,
            violations=(),
            needs_gpu=True,
            slow=True,
            settles=True,
        ),
        Experiment(
            ExperimentName.ALONE,
            "with the other ranks idle",
            _set(alone=True),
            outcomes=(*ENDED, Outcome.HANG),
            alone=True,
        ),
    )
}
"""By name, in the order they are tried: what tells most, and what costs most at the end."""


def those(wanted: Callable[[Experiment], bool]) -> tuple[ExperimentName, ...]:
    """The names of the experiments of which something holds, in the order they are tried."""
    return tuple(name for name, experiment in EXPERIMENTS.items() if wanted(experiment))


def applicable(
    record: Record, conditions: Conditions, device: str, ranks: int
) -> list[tuple[ExperimentName, Conditions]]:
    """The experiments that can tell something about a failed record, with the conditions of each.

    Args:
        conditions: that it failed under.
        device: "cuda" or "cpu".
        ranks: of its node.
    """
    kinds = {violation.kind for violation in record.violations}
    found = []
    for name, experiment in EXPERIMENTS.items():
        asked = kinds & {*experiment.violations} if record.outcome is Outcome.VIOLATION else ()
        if not (asked or record.outcome in experiment.outcomes) or (experiment.needs_gpu and device != "cuda"):
            continue
        if conditions.together and not experiment.together:
            continue
        if (experiment.lends or experiment.alone) and (ranks < 2 or conditions.whole_node):
            continue
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
