"""The canary: caught as it was made on every rank, or the run proves nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck.diagnose.canary_verdict import NOT_RUN, TITLE
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.canary import BIT, INDEX, PARAMS
from gpucheck.model.case import Case
from gpucheck.model.plan import ExpectedFailure, Plan, Step
from gpucheck.model.record import Launch, Outcome, Record, Verdict, Violation
from gpucheck.records.run_folder import Run, read_run
from gpucheck.report import blocks
from tests.conftest import Synthetic

LAUNCH = Launch("_flash_attention_forward", 1, 0, ["cuda:0"], 7, "abc", "sm_90", 0, 4, [1])
CANARY = Step(Case("canary", PARAMS, "exact", "canary/exact", "canary", 0), expect=ExpectedFailure())


def planned(synthetic: Synthetic, ranks: int = 2, cases: int = 2) -> Plan:
    plan = synthetic.plan(cases=cases, ranks=ranks)
    return replace(plan, steps=(*plan.steps, CANARY))


def bird(synthetic: Synthetic, plan: Plan, rank: int, **changes: Any) -> Record:
    """The canary found as it was made, but for the changes."""
    made = synthetic.mismatch(first=list(INDEX), bits=[BIT], wrong=1, total=1024)
    values = {"mismatches": [made], "launches": [LAUNCH], "outcome": Outcome.MISMATCH, **changes}
    return synthetic.record(plan, len(plan.steps) - 1, rank, **values)


def read(synthetic: Synthetic, folder: Path, birds: list[Record], cases: int = 2, **outcomes: Any) -> Run:
    plan = planned(synthetic, ranks=len(birds), cases=cases)
    last = len(plan.steps) - 1
    records = {(last, record.rank): record for record in birds}
    return read_run(synthetic.write(folder / "run", synthetic.run(plan, {**records, **outcomes.get("others", {})})))


def birds(synthetic: Synthetic, *changes: dict[str, Any]) -> list[Record]:
    plan = planned(synthetic, ranks=len(changes))
    return [bird(synthetic, plan, rank, **change) for rank, change in enumerate(changes)]


def test_caught_on_every_rank_leaves_the_run_green(synthetic: Synthetic, tmp_path: Path) -> None:
    run = read(synthetic, tmp_path, birds(synthetic, {}, {}))
    conclusion = conclude(run)
    assert conclusion.verdict is Verdict.PASS and not conclusion.findings
    assert conclusion.notes == ["canary: caught on ranks 0, 1"]


def test_it_is_in_no_row_and_no_result(synthetic: Synthetic, tmp_path: Path) -> None:
    run = read(synthetic, tmp_path, birds(synthetic, {}, {}))
    report = blocks.build(run, conclude(run))
    assert sum(cases for _, cases, _ in report.rows) == 2
    assert {result.record.case for result in report.results} == {"matmul/0/exact", "matmul/1/exact"}
    assert len(run.plan.steps) == 2


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"outcome": Outcome.PASS, "mismatches": []}, "judged right, though one of its elements is wrong"),
        ({"launches": []}, "wrong otherwise than it was made"),
        ({"violations": [Violation("guard", "x")]}, "wrong otherwise than it was made"),
        ({"outcome": Outcome.CRASH, "mismatches": [], "message": "died"}, "crash: died"),
    ],
)
def test_missed_on_one_rank_leaves_the_verdict_open(
    synthetic: Synthetic, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    conclusion = conclude(read(synthetic, tmp_path, birds(synthetic, {}, changes)))
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    (finding,) = [finding for finding in conclusion.findings if finding.title == TITLE]
    assert finding.ranks == [1] and not finding.fails
    assert finding.cases[0].lines[0].startswith(line)
    assert conclusion.notes == ["canary: caught on rank 0, not caught on rank 1"]


def test_one_that_was_lost_is_called_so(synthetic: Synthetic, tmp_path: Path) -> None:
    conclusion = conclude(read(synthetic, tmp_path, birds(synthetic, {}, {"outcome": Outcome.LOST, "mismatches": []})))
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    (finding,) = conclusion.findings
    assert (finding.title, finding.ranks, finding.fails) == (NOT_RUN, [1], False)
    assert conclusion.notes == ["canary: caught on rank 0, did not run on rank 1"]


@pytest.mark.parametrize("change", [{"wrong": 2}, {"first": [0, 0, 3, 6]}, {"bits": [6]}, {"bits": []}])
def test_only_the_one_bit_of_the_one_element_counts(
    synthetic: Synthetic, tmp_path: Path, change: dict[str, Any]
) -> None:
    other = synthetic.mismatch(**{"first": list(INDEX), "bits": [BIT], "wrong": 1, **change})
    conclusion = conclude(read(synthetic, tmp_path, birds(synthetic, {}, {"mismatches": [other]})))
    assert conclusion.verdict is Verdict.INCONCLUSIVE


def test_ranks_must_agree_on_the_wrong_bits(synthetic: Synthetic, tmp_path: Path) -> None:
    conclusion = conclude(read(synthetic, tmp_path, birds(synthetic, {}, {"digests": {"o": "other"}}, {})))
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    assert conclusion.notes == ["canary: caught on ranks 0, 2, not caught on rank 1"]


def test_a_failure_counts_whatever_became_of_the_canary(synthetic: Synthetic, tmp_path: Path) -> None:
    wrong = birds(synthetic, {"outcome": Outcome.PASS, "mismatches": []})
    conclusion = conclude(read(synthetic, tmp_path, wrong, others={(0, 0): Outcome.MISMATCH}))
    assert conclusion.verdict is Verdict.FAIL


def test_a_canary_alone_proves_nothing(synthetic: Synthetic, tmp_path: Path) -> None:
    others = {(number, 0): Outcome.INAPPLICABLE for number in range(2)}
    conclusion = conclude(read(synthetic, tmp_path, birds(synthetic, {}), others=others))
    assert conclusion.verdict is Verdict.NOTHING_RAN


def test_a_run_without_one_says_nothing_of_it(synthetic: Synthetic) -> None:
    conclusion = conclude(synthetic.run(synthetic.plan()))
    assert conclusion.verdict is Verdict.PASS and not conclusion.notes
