"""Two runs held against each other: what is new, fixed, still broken or missing, and what else differs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from gpucheck.diagnose.causes.less_exact import excess
from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.symptoms import VICTIM
from gpucheck.model.finding import Conclusion
from gpucheck.model.record import Outcome, Record, Verdict
from gpucheck.records.run_folder import Run

Place = tuple[str, int]
"""Label of a case, and rank."""


class Standing(str, Enum):
    """How a case stands on a rank in one run."""

    RIGHT = "right"  # passed, or failed just as its scenario says
    WRONG = "wrong"  # part of a finding that fails the run
    ACCEPTED = "accepted"  # wrong as was accepted
    INAPPLICABLE = "inapplicable"
    UNJUDGED = "not judged"  # lost, or gpucheck failed
    ABSENT = "not run"  # not in the plan


class Change(str, Enum):
    """What became of a case on a rank from the first run to the second."""

    BROKEN = "newly broken"
    MISSING = "missing"  # right in the first; not judged, inapplicable or absent in the second
    FIXED = "fixed"
    STILL = "still broken"
    ACCEPTED = "newly broken, accepted"
    APPEARED = "broken, not right before"  # wrong in the second, and neither right nor wrong in the first
    GONE = "broken before, no answer now"
    SAME = "right in both"
    PROVEN = "right, no answer before"
    OPEN = "no answer in either"
    LEFT_OUT = "in one run only"

    @property
    def regression(self) -> bool:
        """Whether the second run is worse for it."""
        return self in (Change.BROKEN, Change.MISSING)


@dataclass(frozen=True)
class Side:
    """One place in one run."""

    standing: Standing
    words: str = ""  # the titles of its findings, else why it has no answer


@dataclass(frozen=True)
class Row:
    """One place in both runs."""

    case: str
    rank: int
    change: Change
    first: Side
    second: Side
    bits: tuple[str, ...] = ()  # outputs right in both whose bits differ, though inputs are equal
    tightness: tuple[float, float] | None = None  # share of the error bound used, where both judged it
    excess: float | None = None  # how many times as much of the same bound the second uses, where that is telling
    seconds: tuple[float, float] | None = None  # of the kernels, where both measured it
    wrong: tuple[float, float] | None = None  # share of the elements of the worst output, where both are wrong


@dataclass(frozen=True)
class Comparison:
    """Everything two runs have to say about each other."""

    verdicts: tuple[Verdict, Verdict]
    environment: dict[str, tuple[str, str]]  # fact -> its two values, equal or not
    rows: list[Row]

    @property
    def regressions(self) -> list[Row]:
        """The rows for which the second run is worse."""
        return [row for row in self.rows if row.change.regression]

    def of(self, *changes: Change) -> list[Row]:
        """The rows that changed so."""
        return [row for row in self.rows if row.change in changes]

    @property
    def less_exact(self) -> list[Row]:
        """The rows that are right in both and use far more of their bound in the second run."""
        return [row for row in self.rows if row.excess]

    @property
    def time_ratios(self) -> dict[str, float]:
        """Case -> time of its kernels in the second run over that in the first, the median of its ranks."""
        ratios: dict[str, list[float]] = {}
        for row in self.rows:
            if row.seconds and min(row.seconds) > 0:
                ratios.setdefault(row.case, []).append(row.seconds[1] / row.seconds[0])
        return {case: statistics.median(values) for case, values in ratios.items()}

    @property
    def error_ratios(self) -> dict[str, float]:
        """Case -> share of its error bound used in the second run over that in the first, the worst of its ranks."""
        worst: dict[str, tuple[float, float]] = {}
        for row in self.rows:
            if row.tightness and min(row.tightness) > 0:
                known = worst.get(row.case, (0.0, 0.0))
                worst[row.case] = max(known[0], row.tightness[0]), max(known[1], row.tightness[1])
        return {case: second / first for case, (first, second) in worst.items()}


def compare(first: Run, second: Run, *, common: bool = False) -> Comparison:
    """Compares two runs.

    A case that only one of them planned counts as missing where both ran the same scenario, else it is left out.

    Args:
        common: leave such cases out in any event.
    """
    conclusions = [conclude(run) for run in (first, second)]
    sides = [_sides(run, conclusion) for run, conclusion in zip((first, second), conclusions, strict=True)]
    records = [_records(run) for run in (first, second)]
    same = first.plan.scenario == second.plan.scenario
    absent = Side(Standing.ABSENT)
    rows = []
    for place in dict.fromkeys([*sides[0], *sides[1]]):
        before, after = (side.get(place, absent) for side in sides)
        change = _change(before, after, strict=same and not common)
        rows.append(Row(*place, change, before, after, **_beside(records[0].get(place), records[1].get(place))))
    return Comparison((conclusions[0].verdict, conclusions[1].verdict), _environment(first, second), rows)


def _records(run: Run) -> dict[Place, Record]:
    return {(run.plan.steps[step].label, rank): record for (step, rank), record in sorted(run.records.items())}


def _sides(run: Run, conclusion: Conclusion) -> dict[Place, Side]:
    """Every planned place; it is wrong where a finding that fails the run shows it."""
    titles: dict[Place, list[str]] = {}
    for finding in conclusion.findings:
        wrong = finding.fails or (finding.excuse and finding.title != VICTIM.title)
        for failed_case in finding.cases if wrong else ():
            for rank in failed_case.ranks:
                words = f"{finding.title} ({finding.excuse})" if finding.excuse else finding.title
                titles.setdefault((failed_case.case, rank), []).append(words)
    found = {}
    for (step, rank), record in sorted(run.records.items()):
        place = (run.plan.steps[step].label, rank)
        side = _side(record, titles.get(place, []), (step, rank) in conclusion.expected)
        culprit = rank if record.victim_of is None else record.victim_of
        found[place] = replace(side, standing=Standing.ACCEPTED) if (step, culprit) in conclusion.accepted else side
    return found


def _side(record: Record, titles: Iterable[str], expected: bool) -> Side:
    words = ", ".join(dict.fromkeys(titles))
    if words:
        return Side(Standing.WRONG, words)
    if record.outcome is Outcome.PASS or expected:
        return Side(Standing.RIGHT)
    if record.outcome is Outcome.INAPPLICABLE:
        return Side(Standing.INAPPLICABLE, record.message)
    return Side(Standing.UNJUDGED, f"{record.outcome.value}: {record.message}".rstrip(": "))


def _change(before: Side, after: Side, *, strict: bool) -> Change:
    first, second = before.standing, after.standing
    if Standing.ABSENT in (first, second) and not (strict and second is Standing.ABSENT and first is Standing.RIGHT):
        return Change.LEFT_OUT
    if second is Standing.ACCEPTED:
        return Change.ACCEPTED if first is Standing.RIGHT else _change(before, Side(Standing.WRONG), strict=strict)
    if first is Standing.RIGHT:
        return {Standing.RIGHT: Change.SAME, Standing.WRONG: Change.BROKEN}.get(second, Change.MISSING)
    if first in (Standing.WRONG, Standing.ACCEPTED):
        return {Standing.RIGHT: Change.FIXED, Standing.WRONG: Change.STILL}.get(second, Change.GONE)
    return {Standing.WRONG: Change.APPEARED, Standing.RIGHT: Change.PROVEN}.get(second, Change.OPEN)


def _beside(first: Record | None, second: Record | None) -> dict[str, Any]:
    """Bits, errors and times of a place that passed in both runs, or how wrong it is in both."""
    if not first or not second:
        return {}
    if first.mismatches and second.mismatches:
        return {"wrong": (_wrong(first), _wrong(second))}
    if {first.outcome, second.outcome} != {Outcome.PASS}:
        return {}
    names = [name for name in first.digests if second.digests.get(name, first.digests[name]) != first.digests[name]]
    kernel = first.seconds.get("kernel", 0.0), second.seconds.get("kernel", 0.0)
    return {
        "bits": tuple(names) if first.inputs and first.inputs == second.inputs else (),
        "tightness": (first.tightness, second.tightness),
        "excess": excess(second.tightness, first.tightness) if _bound(first) == _bound(second) else None,
        "seconds": kernel if all(kernel) else None,
    }


def _bound(record: Record) -> tuple[str, str]:
    """What an error bound follows from; records of older versions do not say how the device adds up."""
    return record.inputs, record.arithmetic


def _wrong(record: Record) -> float:
    return max(mismatch.wrong / mismatch.total for mismatch in record.mismatches)


def _environment(first: Run, second: Run) -> dict[str, tuple[str, str]]:
    sides = [_facts(run) for run in (first, second)]
    return {name: (sides[0].get(name, ""), sides[1].get(name, "")) for name in dict.fromkeys([*sides[0], *sides[1]])}


def _facts(run: Run) -> dict[str, str]:
    """What a run ran on, in words."""
    plan = run.plan
    software: Mapping[str, Any] = plan.environment.get("software", {})
    devices = sorted({record.device for record in run.records.values() if record.device})
    facts = {
        "scenario": plan.scenario,
        "seed": str(plan.seed),
        "ranks": f"{plan.world_size}" + (f" on {plan.nnodes} nodes" if plan.nnodes > 1 else ""),
        "GPU": ", ".join(devices) or plan.device,
        "host": ", ".join(sorted({record.host for record in run.records.values() if record.host})),
        "library": f"{plan.library.get('name')}, {plan.library.get('origin')}" if plan.has_library else "none needed",
        "content": str(plan.library.get("content", ""))[:12],
        "patches": ", ".join(str(patch).rpartition("/")[2] for patch in plan.library.get("patches", [])),
    }
    for source in plan.check_sources:
        facts[f"checks {', '.join(source.checks)}"] = " ".join(content[:12] for content in source.hashes)
    for name, value in software.items():
        if name == "triton_kernels":
            continue
        if isinstance(value, Mapping):
            facts[name] = str(value.get("version", "?"))
            facts[f"{name} files"] = str(value.get("fingerprint", ""))
        elif value:
            facts[name] = str(value)
    return {name: value for name, value in facts.items() if value}
