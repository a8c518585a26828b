"""Reading the report of a planted run as its user would: is each fault detected, and rightly attributed?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpucheck.diagnose.symptoms import VICTIM
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import ExitCode
from gpucheck.model.plan import Step
from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.fault import Candidate, Fault
from gpucheck.tools.selftest.injection import Planted
from gpucheck.tools.selftest.schedule import FaultRun

MOST_WORDS = 200  # characters of a line that a problem quotes


@dataclass(frozen=True)
class Cell:
    """One fault on one target."""

    fault: str
    column: str  # a rank, or "all"
    detected: bool
    problems: tuple[str, ...] = ()  # of detection and attribution
    inapplicable: str = ""  # why the case could not run

    @property
    def right(self) -> bool:
        return self.detected and not self.problems


@dataclass
class Assessment:
    """What one run showed."""

    cells: list[Cell] = field(default_factory=list)
    clean: int = 0  # cases on ranks with nothing planted in them
    alarms: list[str] = field(default_factory=list)  # what the report says of them all the same
    problems: list[str] = field(default_factory=list)  # of the run as a whole


def assess(run: FaultRun, report: Mapping[str, Any], text: str, code: int) -> Assessment:
    """Compares a report with what was planted.

    Args:
        report: as written by ``--json``.
        text: what the command printed.
        code: its exit code.
    """
    seen = _Report(run, report, text)
    found = Assessment()
    planted: dict[str, tuple[int, ...]] = {}
    for item in run.wrong:
        label = label_of(item.fault)
        planted[label] = item.ranks
        lost = item.fault.expected.outcome is Outcome.LOST
        found.cells.append(_lost_cell(item, seen, code) if lost else _cell(item, label, seen, code))
    lost_ranks = {r for item in run.wrong if item.fault.expected.outcome is Outcome.LOST for r in item.ranks}
    _clean(seen, planted, lost_ranks, found)
    if not run.planted and code != run.exit_code:
        found.problems.append(f"exit code {code}, expected {int(run.exit_code)}")
    return found


def label_of(fault: Fault) -> str:
    """The label of a fault's case, as reports name it."""
    from gpucheck import checks

    given = fault.case
    if isinstance(fault.plant, Candidate):  # known only to the run that brings it along
        return f"{given['check']}/trial{given['trial']}/{given['data']}"
    spec = checks.load(given["check"]).spec
    params = {name: given[name] for name in spec.defaults if name in given}
    return Step(spec.case(params, given["data"], 0), Conditions.from_json(given)).label


class _Report:
    """A report, by case."""

    def __init__(self, run: FaultRun, report: Mapping[str, Any], text: str) -> None:
        self.run, self.text = run, text
        self.results: dict[str, dict[int, Mapping[str, Any]]] = {}
        for result in report["results"]:
            words = Conditions.from_json(result["conditions"]).words
            label = result["case"] + (f" ({words})" if words else "")
            self.results.setdefault(label, {})[result["rank"]] = result
        self.findings: list[Mapping[str, Any]] = report["findings"]

    def findings_of(self, label: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """The findings about a case, each with the failed case in it."""
        return [
            (finding, failed_case)
            for finding in self.findings
            for failed_case in finding["cases"]
            if failed_case["case"] == label and finding["title"] != VICTIM.title
        ]


def _cell(item: Planted, label: str, seen: _Report, code: int) -> Cell:
    fault, ranks = item.fault, item.ranks
    column = str(ranks[0]) if seen.run.column == "each" else "all"
    results = seen.results.get(label, {})
    outcomes = {rank: results[rank]["outcome"] if rank in results else "not there" for rank in ranks}
    wanted = fault.expected.outcome.value
    if set(outcomes.values()) == {Outcome.INAPPLICABLE.value} != {wanted}:
        return Cell(fault.name, column, False, inapplicable=results[ranks[0]]["message"])
    problems = [f"rank {rank}: {outcome}, expected {wanted}" for rank, outcome in outcomes.items() if outcome != wanted]
    problems += _attribution(item, label, seen)
    if code != fault.expected.exit_code and seen.run.exit_code == fault.expected.exit_code:
        problems.append(f"exit code {code}, expected {int(fault.expected.exit_code)}")
    detected = all(outcome not in (Outcome.PASS.value, "not there") for outcome in outcomes.values())
    return Cell(fault.name, column, detected, tuple(problems))


def _attribution(item: Planted, label: str, seen: _Report) -> list[str]:
    """What is wrong about the findings of a fault's case."""
    found = seen.findings_of(label)
    if not found:
        return ["no finding names its case"]
    expected, problems = item.fault.expected, []
    named = sorted({rank for _, failed_case in found for rank in failed_case["ranks"]})
    if named != sorted(item.ranks):
        problems.append(f"found on {rank_list(named)}, planted on {rank_list(item.ranks)}")
    pattern = expected.title.replace("{cause}", cause(item, seen.run))
    lines = [line for _, failed_case in found for line in failed_case["lines"]]
    for finding, _ in found:
        if not re.fullmatch(pattern, finding["title"]):
            problems.append(f"called {finding['title']!r}, expected {pattern!r}")
        if finding["title"] not in seen.text:
            problems.append(f"the printed report leaves out {finding['title']!r}")
        if finding["fails"] is not (expected.exit_code is ExitCode.FAIL):
            problems.append("the finding fails the run" if finding["fails"] else "the finding does not fail the run")
    for said in expected.says:
        if not any(re.search(said, line) for line in lines):
            problems.append(f"no line says {said!r}: {' | '.join(lines)[:MOST_WORDS]}")
    return problems


KERNEL_BUG, RANK_ENVIRONMENT, UNDETERMINED = "kernel bug", "environment of a rank", "undetermined"
"""Causes as a report names them, which is all that a user sees."""


def cause(item: Planted, run: FaultRun) -> str:
    """What the report must take a wrong output for, by the ranks it is planted on."""
    if run.column == "all":
        return KERNEL_BUG
    if run.ranks > 1:
        return RANK_ENVIRONMENT
    return KERNEL_BUG if run.device == "cpu" else UNDETERMINED


def _lost_cell(item: Planted, seen: _Report, code: int) -> Cell:
    """A lost rank: some of its cases are, and every other rank completes."""
    (rank,) = item.ranks
    lost = [of_case[rank] for of_case in seen.results.values() if of_case[rank]["outcome"] == Outcome.LOST.value]
    findings = [finding for finding in seen.findings if re.fullmatch(item.fault.expected.title, finding["title"])]
    problems = [f"found on {rank_list(finding['ranks'])}" for finding in findings if finding["ranks"] != [rank]]
    if not findings:
        problems.append("no finding names the lost rank")
    for said in item.fault.expected.says:
        if not any(re.search(said, result["message"]) for result in lost):
            problems.append(f"nothing says {said!r}")
    if code != item.fault.expected.exit_code:
        problems.append(f"exit code {code}, expected {int(item.fault.expected.exit_code)}")
    return Cell(item.fault.name, str(rank), bool(lost), tuple(problems))


def _clean(seen: _Report, planted: Mapping[str, Sequence[int]], lost: set[int], found: Assessment) -> None:
    """Counts what has no fault in it, and takes down what the report says of it."""
    unexpected: set[tuple[str, int]] = set()  # cases that a finding has no reason to name
    for label, results in seen.results.items():
        for rank, result in results.items():
            if result["outcome"] == Outcome.INAPPLICABLE.value or rank in planted.get(label, ()) or rank in lost:
                continue
            if result.get("victim_of") in planted.get(label, ()):  # and is told to be
                continue
            found.clean += 1
            if result["outcome"] == Outcome.PASS.value:
                unexpected.add((label, rank))
            else:
                found.alarms.append(f"rank {rank}: {label}: {result['outcome']} {result['message']}".rstrip())
    for finding in seen.findings:
        for failed_case in finding["cases"]:
            label = failed_case["case"]
            ranks = [rank for rank in failed_case["ranks"] if (label, rank) in unexpected]
            if ranks or label not in seen.results:
                found.alarms.append(f"{rank_list(ranks or finding['ranks'])}: {label}: {finding['title']}")
