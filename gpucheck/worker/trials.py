"""Experiments with the cases that failed on a rank: each tried again under one changed condition."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

from gpucheck.diagnose.evidence import Answers
from gpucheck.diagnose.experiments import (
    BLOCKING,
    EXPERIMENTS,
    REPEAT,
    applicable,
    needs_pinning,
    rate_of,
    repeats_needed,
)
from gpucheck.diagnose.rules import outside
from gpucheck.diagnose.rules.common import astray
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Outcome, Record
from gpucheck.records.writer import RecordWriter
from gpucheck.worker.runner import Runner

MOST_CASES = 8  # of a rank; further ones that fail alike would tell the same
MOST_PINNED = 16  # of a rank
SETTLING = ("no group", "one thread", "waits", "fresh cache")  # experiments after which a cause is known
OF_OUTSIDE = (REPEAT, "no group", "one thread", "guarded")  # all that can change what is said of such an access
Way = tuple[str, Outcome, tuple[str, ...]]
PIN_SECONDS = 20.0  # within which a case that hung or lost its device shows where, in a process of its own


@dataclass(frozen=True)
class Trial:
    """One experiment with one case."""

    number: int
    step: Step  # under the changed conditions
    name: str
    deadline: float | None = None  # s; None takes the plan's


class Trials:
    """The experiments of one rank, within the time the plan grants them."""

    def __init__(self, plan: Plan, runner: Runner, writer: RecordWriter, failed: Sequence[Record]) -> None:
        self.plan, self.runner, self.writer = plan, runner, writer
        self.failed = failed
        self._records = {record.step: record for record in failed}
        self._tried: dict[int, dict[str, Record]] = {record.step: {} for record in failed}
        self._rates = {record.step: rate_of(record) for record in failed}  # at which launches of a step fail

    def work(self) -> None:
        """Tries what can tell causes apart: first what ranks can do side by side, then what each must do alone."""
        deadline = time.monotonic() + self.plan.experiments

        def open_() -> bool:
            return time.monotonic() < deadline and not self.runner.stuck

        pinned = set()
        for trial in self._pinning():
            if open_():
                self._try(trial)
                pinned.add((trial.number, trial.name))
        for trial in self._trials(pinned):
            if not trial.step.conditions.alone and open_() and self._falls_to_us(trial):
                self._try(trial)
        self.runner.retire()
        for trial in self._trials(pinned):
            if trial.step.conditions.alone and open_() and self._falls_to_us(trial):
                with self.runner.node.alone(deadline - time.monotonic()) as alone:
                    if alone:
                        self._try(trial)
                        self.runner.retire()
        self.runner.node.rest()

    def _pinning(self) -> Iterator[Trial]:
        """A run with launches that are waited for, of each case that ended in a way no one knows the place of."""
        blind = (record for record in self.failed if needs_pinning(record, self.plan))
        for record in sorted(blind, key=lambda record: (not record.sticky, record.step))[:MOST_PINNED]:
            step = self.plan.steps[record.step]
            conditions = replace(step.conditions, synchronised=True, repeat=1)
            seconds = min(PIN_SECONDS, self.plan.case_timeout)
            yield Trial(record.step, replace(step, conditions=conditions), BLOCKING, seconds)

    def _trials(self, pinned: Container[tuple[int, str]]) -> Iterator[Trial]:
        """Experiment by experiment, of one case for each row of the report and way to fail.

        So each case gets what tells most before any gets the rest, and cases share the process of an experiment.
        """
        ranks = self.runner.node.local_ranks
        chosen = representatives(self.plan, self.failed)
        steps = {record.step: self.plan.steps[record.step] for record in chosen}
        possible = {
            record.step: dict(applicable(record, steps[record.step].conditions, self.plan.device, ranks))
            for record in chosen
        }
        for name in EXPERIMENTS:
            for record in chosen:
                conditions = possible[record.step].get(name)
                if conditions is not None and (record.step, name) not in pinned and self._tells(record, name):
                    yield Trial(record.step, replace(steps[record.step], conditions=conditions), name)

    def _falls_to_us(self, trial: Trial) -> bool:
        """Whether this rank makes an experiment: ranks that all gave the same wrong bits make each of them once.

        Whether they come every time each rank sees for itself; only then do the answers of others hold for it.
        """
        node, bits = self.runner.node, self._records[trial.number].bits
        always = Answers(self._tried[trial.number]).deterministic
        shared = always and bool(bits) and node.all_told(f"{trial.number}-{bits}")
        return not shared or node.claim(f"{trial.number}-{bits}-{trial.name.replace(' ', '-')}")

    def _tells(self, record: Record, name: str) -> bool:
        """Whether the answer to an experiment can still make a difference to what is made of a case."""
        seen = Answers(self._tried[record.step])
        if REPEAT in seen.tried and not seen.wrong(REPEAT):
            return False
        if name not in OF_OUTSIDE and outside.shown(record) and not astray(record):
            return False
        if name == "alone" and not seen.deterministic:
            return False
        return not any(seen.proves(settled, record) for settled in SETTLING)

    def _try(self, trial: Trial) -> None:
        from gpucheck.worker.judging import finished

        step, conditions = trial.step, trial.step.conditions
        if trial.deadline is None:
            needed = repeats_needed(self._rates[trial.number])
            step = replace(step, conditions=replace(conditions, repeat=max(needed, conditions.repeat)))
        self.writer.begin(trial.number, trial.name)
        attempt = self.runner.run(trial.number, step, trial.name, deadline=trial.deadline)
        record = finished(self.runner.store, attempt)
        self.writer.result(record)
        self._tried[trial.number][trial.name] = record
        if trial.name == REPEAT:
            self._rates[trial.number] = rate_of(self._records[trial.number], record)
            self.runner.retire()  # the next one is to be repeated in a fresh process as well


def representatives(plan: Plan, failed: Sequence[Record]) -> list[Record]:
    """The failed records worth experiments: unexpected ones, one for each row and way to fail, in the plan's order."""
    chosen: dict[Way, Record] = {}
    for record in sorted(failed, key=lambda record: record.step):
        way = way_to_fail(plan, record)
        if way is not None:
            chosen.setdefault(way, record)
    return list(chosen.values())[:MOST_CASES]


def way_to_fail(plan: Plan, record: Record) -> Way | None:
    """The row and the way in which a record failed; None where that is expected."""
    step = plan.steps[record.step]
    if step.expect is not None and step.expect.includes(plan.local_rank(record.rank)):
        return None
    return step.row, record.outcome, tuple(sorted({violation.kind for violation in record.violations}))
