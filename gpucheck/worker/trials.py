"""Experiments with the cases that failed on a rank: each tried again under one changed condition."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gpucheck.diagnose.experiments import REPEAT, applicable, rate_of, repeats_needed
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Outcome, Record
from gpucheck.records.writer import RecordWriter
from gpucheck.worker.runner import Runner

MOST_CASES = 8  # of a rank; further ones that fail alike would tell the same


@dataclass(frozen=True)
class Trial:
    """One experiment with one case."""

    number: int
    step: Step  # under the changed conditions
    name: str


class Trials:
    """The experiments of one rank, within the time the plan grants them."""

    def __init__(self, plan: Plan, runner: Runner, writer: RecordWriter, failed: Sequence[Record]) -> None:
        self.plan, self.runner, self.writer = plan, runner, writer
        self.failed = failed
        self._records = {record.step: record for record in failed}
        self._rates = {record.step: rate_of(record) for record in failed}  # at which launches of a step fail

    def work(self) -> None:
        """Tries what can tell causes apart: first what ranks can do side by side, then what each must do alone."""
        deadline = time.monotonic() + self.plan.experiments
        trials = list(self._trials())
        for trial in trials:
            if not trial.step.conditions.alone and time.monotonic() < deadline:
                self._try(trial)
        self.runner.retire()
        for trial in trials:
            if trial.step.conditions.alone and time.monotonic() < deadline:
                with self.runner.node.alone(deadline - time.monotonic()) as alone:
                    if alone:
                        self._try(trial)
                        self.runner.retire()
        self.runner.node.rest()

    def _trials(self) -> Iterator[Trial]:
        """Experiments case by case, of one case for each row of the report and way to fail."""
        for record in representatives(self.plan, self.failed):
            step = self.plan.steps[record.step]
            ranks = self.runner.node.local_ranks
            for name, conditions in applicable(record, step.conditions, self.plan.device, ranks):
                yield Trial(record.step, replace(step, conditions=conditions), name)

    def _try(self, trial: Trial) -> None:
        from gpucheck.worker.judging import finished

        conditions = trial.step.conditions
        needed = repeats_needed(self._rates[trial.number])
        step = replace(trial.step, conditions=replace(conditions, repeat=max(needed, conditions.repeat)))
        self.writer.begin(trial.number, trial.name)
        record = finished(self.runner.store, self.runner.run(trial.number, step, trial.name))
        self.writer.result(record)
        if trial.name == REPEAT:
            self._rates[trial.number] = rate_of(self._records[trial.number], record)


def representatives(plan: Plan, failed: Sequence[Record]) -> list[Record]:
    """The failed records worth experiments: unexpected ones, one for each row and way to fail, in the plan's order."""
    chosen: dict[tuple[str, Outcome, tuple[str, ...]], Record] = {}
    for record in sorted(failed, key=lambda record: record.step):
        step = plan.steps[record.step]
        if step.expect is None or not step.expect.includes(plan.local_rank(record.rank)):
            kinds = tuple(sorted({violation.kind for violation in record.violations}))
            chosen.setdefault((step.row, record.outcome, kinds), record)
    return list(chosen.values())[:MOST_CASES]
