"""Results that differ between calls on one GPU."""

from __future__ import annotations

from collections.abc import Callable

from gpucheck.diagnose.answers import Answers, answers, irregular_share, regular
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.chance import at_most
from gpucheck.diagnose.experiment_list import REPEAT, Experiment, applicable, rate_of, those
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName, ViolationKind
from gpucheck.records.run_folder import Run

RACE = Cause(
    "race or uninitialised read",
    means="Equal inputs in equal memory give different bits: threads of a kernel race (a missing barrier, atomics "
    "in changing order), or it reads memory that nobody wrote.",
    shows="Repeats differ from each other on one and the same GPU.",
    confirm="Repeat with --repeat 50; compute-sanitizer --tool racecheck or initcheck names the instruction.",
    fix="A barrier, a deterministic reduction, or an initialised buffer in the named kernel.",
)
CAUSES = (RACE,)

SPARED = 0.05  # chance below which ranks that are right, among others that a race would strike alike, speak against it
CALLS = 2  # of a case that is right and runs once


def recognise(run: Run, record: Record) -> Evidence | None:
    """Equal inputs in equal memory gave different bits in one process, in no order, whatever was changed.

    Among several threads it may be two things that come and go, of which one thread takes away one.
    """
    seen = answers(run, record)
    if not seen.irregular or run.plan.steps[seen.failure.step].conditions.concurrency > 1:
        return None
    return (
        Evidence(RACE, ViolationKind.REPEATS_DIFFER.value) if not (unasked(run, seen) or _spared(run, seen)) else None
    )


def _spared(run: Run, seen: Answers) -> bool:
    """Whether some ranks are right too often for code that all of them run."""
    alone, step = seen.processes(REPEAT), seen.failure.step
    share = irregular_share(alone)
    others = [run.experiments.get((step, rank), {}).get(REPEAT, ()) for rank in run.ranks]
    if any(len(made) > 1 and regular(made) and (1 - share) ** len(made) < SPARED for made in others):
        return True
    failing = [rank for rank in run.ranks if run.records[(step, rank)].outcome.failed]
    right = (1 - rate_of(*alone)) ** CALLS if seen.failure.mismatches else 1.0
    return at_most(len(failing), run.plan.world_size, 1 - right) < SPARED


def unasked(
    run: Run, seen: Answers, wanted: Callable[[Experiment], bool] = lambda each: each.before_race
) -> list[ExperimentName]:
    """Those of some experiments that could still tell another cause: not made yet, or right so far."""
    failure = seen.failure
    conditions = run.plan.steps[failure.step].conditions
    possible = dict(applicable(failure, conditions, run.plan.device, run.plan.nproc))
    return [name for name in those(wanted) if name in possible and not seen.wrong(name)]
