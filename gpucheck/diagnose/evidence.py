"""What the experiments with a failing case answered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gpucheck.diagnose.experiments import EXPERIMENTS, LUCK, REPEAT, rate_of
from gpucheck.model.record import Outcome, Record
from gpucheck.records.folder import Run

Z95 = 1.959964  # of the normal distribution, for a two-sided interval of 95%


@dataclass(frozen=True)
class Answers:
    """The experiments with a record and its like on other ranks, or with one of its rank and row that failed alike."""

    tried: Mapping[str, Record]  # by name
    of: str = ""  # label of the other case that the answers come from; "" for the record's own

    def right(self, name: str) -> bool:
        """Whether the case was right under the changed condition, every time it ran."""
        return name in self.tried and self.tried[name].outcome is Outcome.PASS

    def wrong(self, name: str) -> bool:
        """Whether it failed under the changed condition as well."""
        return name in self.tried and self.tried[name].outcome.failed

    @property
    def deterministic(self) -> bool:
        """Whether the case failed every time it was repeated, with the same bits."""
        again = self.tried.get(REPEAT)
        if again is None or not again.outcome.failed or self.bits_differ:
            return False
        return again.wrong == again.repeats or not again.mismatches

    @property
    def intermittent(self) -> bool:
        """Whether repeats of the case differ: in whether they fail, or in their bits."""
        again = self.tried.get(REPEAT)
        if again is None:
            return False
        return (
            again.outcome is Outcome.PASS
            or self.bits_differ
            or (0 < again.wrong < again.repeats and not _by_fill(again))
        )

    @property
    def bits_differ(self) -> bool:
        """Whether repeats of the case gave different bits though memory held the same before."""
        again = self.tried.get(REPEAT)
        return again is not None and again.distinct > 1 and not _by_fill(again)

    def proves(self, name: str, record: Record) -> bool:
        """Whether the changed condition is what makes the case right.

        A failure that comes and goes may stay away by luck: its rate must be so high that it had stayed hidden in
        the runs of the experiment with a probability below LUCK. One that did not come again proves nothing.
        """
        if not self.right(name) or not self.wrong(REPEAT):
            return False
        return (1 - rate_of(record, self.tried[REPEAT])) ** self.tried[name].repeats < LUCK

    def lines(self) -> list[str]:
        """The answers in words: repeats with their rate, then what was right and what was wrong."""
        lines = [f"answers of {self.of}, which fails alike"] if self.of else []
        if REPEAT in self.tried:
            lines.append(repeated(self.tried[REPEAT]))
        for word, asked in (("right", self.right), ("wrong", self.wrong)):
            named = [EXPERIMENTS[name].words for name in self.tried if name != REPEAT and asked(name)]
            if named:
                lines.append(f"{word} {', '.join(named)}")
        return lines


def answers(run: Run, record: Record) -> Answers:
    """The experiments that say something about a failed record."""
    own = run.experiments.get((record.step, record.rank), {})
    if own:
        every = {**_shared(run, record), **own}
        return Answers({name: every[name] for name in EXPERIMENTS if name in every})
    for (step, rank), tried in run.experiments.items():
        other = run.records[(step, rank)]
        alike = rank == record.rank and other.outcome is record.outcome and _kinds(other) == _kinds(record)
        if alike and run.plan.steps[step].row == run.plan.steps[record.step].row:
            return Answers(tried, run.plan.steps[step].label)
    return Answers({})


def _shared(run: Run, record: Record) -> dict[str, Record]:
    """The experiments of its node's ranks, which share them where all of them gave the same wrong bits every time."""
    first = record.rank - run.plan.local_rank(record.rank)
    ranks = range(first, first + run.plan.nproc)
    always = Answers(run.experiments[(record.step, record.rank)]).deterministic
    if not always or not record.bits or any(run.records[(record.step, rank)].bits != record.bits for rank in ranks):
        return {}
    found: dict[str, Record] = {}
    for rank in ranks:
        found |= run.experiments.get((record.step, rank), {})
    found.pop(REPEAT, None)
    return found


def _by_fill(record: Record) -> bool:
    """Whether launches differ with what memory held before, and with nothing else."""
    return "passes differ" in _kinds(record)


def _kinds(record: Record) -> set[str]:
    return {violation.kind for violation in record.violations}


def repeated(again: Record) -> str:
    """How often a repeated case failed, with the interval that the true rate lies in."""
    if again.outcome is Outcome.PASS:
        return f"right in all of {again.repeats} repeats in a fresh process: not reproduced"
    if not again.mismatches:
        return f"{EXPERIMENTS[REPEAT].words}: {again.outcome.value}" + (f", {again.message}" if again.message else "")
    if again.bad_calls == [0] and "tuning differs" in _kinds(again):
        return (
            f"wrong in the first of {again.repeats} calls of a fresh process, the one that was tuned, and in no other"
        )
    bits = "the same bits each time" if again.distinct == 1 else f"{again.distinct} different outputs"
    words = f"{again.wrong} of {again.repeats} repeats in a fresh process wrong, {bits}"
    if _by_fill(again):
        return f"{words}, one for each content of memory that is not the input's: deterministic"
    if again.wrong == again.repeats:
        return f"{words}: " + ("deterministic" if again.distinct == 1 else "wrong every time, but not deterministic")
    return f"{words}; {rate_words(again.wrong, again.repeats)}: intermittent"


def rate_words(hits: int, trials: int) -> str:
    """A rate with the interval that the true one lies in, as finely as its size asks for."""
    low, high = interval(hits, trials)
    digits = 0 if hits and hits / trials >= 0.1 else 2
    return f"rate {hits / trials:.{digits}%}, 95% interval {low:.{digits}%} to {high:.{digits}%}"


def interval(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate seen as ``hits`` of ``trials``."""
    rate, square = hits / trials, Z95 * Z95 / trials
    middle = (rate + square / 2) / (1 + square)
    half = Z95 / (1 + square) * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
