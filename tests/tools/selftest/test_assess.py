"""What the self-test makes of reports: right ones, and ones that are wrong in each way it looks at."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from gpucheck.model.conditions import Conditions
from gpucheck.tools.selftest.assess import Assessment, assess, label_of
from gpucheck.tools.selftest.catalogue import choose
from gpucheck.tools.selftest.injection import Planted
from gpucheck.tools.selftest.schedule import FaultRun

(BIT,) = choose(["bit-7"])
(LOST,) = choose(["never-starts"])
LABEL, CLEAN = label_of(BIT), "matmul/dense/bf16/m20-n100-k96-persistent-no/exact"
LINES = ["y: row 3 of 20, column 5 of 61", "1 of 1220 elements wrong (0.08%)", "each differs in one bit: 7"]
TITLE = "environment of a rank: one bit flipped"


def result(case: str, rank: int, outcome: str = "pass", message: str = "") -> dict[str, Any]:
    return {
        "case": case,
        "conditions": Conditions().to_json(),
        "rank": rank,
        "outcome": outcome,
        "message": message,
    }


def finding(title: str = TITLE, ranks: tuple[int, ...] = (1,), case: str = LABEL, **changes: Any) -> dict[str, Any]:
    shown = {"case": case, "ranks": list(ranks), "lines": list(LINES), "replay": ""}
    return {"title": title, "fails": True, "ranks": list(ranks), "cases": [shown], **changes}


def report() -> dict[str, Any]:
    """What a run must say of one flipped bit on rank 1."""
    results = [result(LABEL, 0), result(LABEL, 1, "mismatch"), result(CLEAN, 0), result(CLEAN, 1)]
    return {"results": results, "findings": [finding()]}


def assessed(changed: dict[str, Any], code: int = 1, text: str = TITLE, column: str = "each") -> Assessment:
    ranks = (1,) if column == "each" else (0, 1)
    return assess(FaultRun("x", column, "cpu", 2, 0, (Planted(BIT, ranks),)), changed, text, code)


def test_a_report_as_declared_is_right() -> None:
    found = assessed(report())
    (cell,) = found.cells
    assert cell.right and (cell.fault, cell.column) == ("bit-7", "1")
    assert (found.clean, found.alarms, found.problems) == (3, [], [])


Change = Callable[[dict[str, Any]], None]


def set_outcome(value: str) -> Change:
    return lambda item: item["results"][1].update(outcome=value)


def set_finding(**changes: Any) -> Change:
    return lambda item: item.update(findings=[finding(**changes)])


def drop_line(number: int) -> Change:
    return lambda item: item["findings"][0]["cases"][0]["lines"].pop(number)


@pytest.mark.parametrize(
    ("change", "problem", "detected"),
    [
        (set_outcome("pass"), "rank 1: pass, expected mismatch", False),
        (set_outcome("error"), "rank 1: error, expected mismatch", True),
        (lambda item: item["results"].pop(1), "rank 1: not there, expected mismatch", False),
        (lambda item: item["findings"].clear(), "no finding names its case", True),
        (set_finding(case=CLEAN), "no finding names its case", True),
        (set_finding(ranks=(0, 1)), "found on ranks 0, 1, planted on rank 1", True),
        (set_finding(title="kernel bug: one bit flipped"), "called 'kernel bug: one bit flipped', expected", True),
        (set_finding(title=TITLE + "!"), f"called '{TITLE}!', expected '{TITLE}'", True),
        (set_finding(fails=False), "the finding does not fail the run", True),
        (drop_line(0), "no line says 'y: row 3 of 20, column 5 of", True),
        (drop_line(2), "no line says 'each differs in one bit: 7$'", True),
    ],
)
def test_what_differs_from_the_declaration_is_a_problem(change: Change, problem: str, detected: bool) -> None:
    changed = copy.deepcopy(report())
    change(changed)
    (cell,) = assessed(changed).cells
    assert not cell.right and cell.detected is detected
    assert any(text.startswith(problem) for text in cell.problems), cell.problems


def test_exit_code_and_printed_text_count_too() -> None:
    (cell,) = assessed(report(), code=0).cells
    assert cell.problems == ("exit code 0, expected 1",)
    (cell,) = assessed(report(), text="").cells
    assert cell.problems == (f"the printed report leaves out {TITLE!r}",)


def test_the_cause_follows_from_the_ranks_it_is_planted_on() -> None:
    title = "kernel bug: one bit flipped"
    both = {"results": [result(LABEL, rank, "mismatch") for rank in (0, 1)], "findings": [finding(title, (0, 1))]}
    (cell,) = assessed(both, text=title, column="all").cells
    assert cell.right and cell.column == "all"


def test_a_failure_where_nothing_is_planted_is_a_false_alarm() -> None:
    changed = report()
    changed["results"][2].update(outcome="error", message="no reason")
    found = assessed(changed)
    assert found.alarms == [f"rank 0: {CLEAN}: error no reason"]
    assert found.clean == 3


def test_a_finding_about_what_passed_is_a_false_alarm() -> None:
    changed = report()
    changed["findings"] += [finding("kernel bug", (0,), CLEAN), finding("software changed", (0, 1), "software")]
    assert assessed(changed).alarms == [f"rank 0: {CLEAN}: kernel bug", "ranks 0, 1: software: software changed"]


def test_a_case_that_cannot_run_is_neither_missed_nor_an_alarm() -> None:
    changed = report()
    changed["results"] = [result(LABEL, rank, "inapplicable", "no such layout") for rank in (0, 1)]
    changed["findings"] = [finding("inapplicable, though not marked optional", (0, 1))]
    found = assessed(changed, code=3)
    assert [cell.inapplicable for cell in found.cells] == ["no such layout"]
    assert not found.alarms


def test_a_lost_rank_is_told_by_any_of_its_cases() -> None:
    run = FaultRun("x", "each", "cpu", 2, 0, (Planted(LOST, (0,)),))
    results = [result(CLEAN, 0, "lost", "the rank never started"), result(CLEAN, 1)]
    told = {"results": results, "findings": [finding("lost", (0,), CLEAN, fails=False)]}
    found = assess(run, told, "", 3)
    assert found.cells[0].right and found.clean == 1 and not found.alarms
    assert assess(run, told, "", 0).cells[0].problems == ("exit code 0, expected 3",)
    results[0]["outcome"] = "pass"
    assert not assess(run, told, "", 3).cells[0].detected


def test_a_run_without_faults_must_be_green() -> None:
    run = FaultRun("no fault", "controls", "cpu", 2, 0)
    green = {"results": [result(CLEAN, 0), result(CLEAN, 1)], "findings": []}
    assert assess(run, green, "", 0).problems == []
    assert assess(run, green, "", 3).problems == ["exit code 3, expected 0"]
