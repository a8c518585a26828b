"""Two synthetic runs against each other: every pair of outcomes, and what is said beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.compare import Change, Comparison, Standing, compare
from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import ExpectedFailure
from gpucheck.model.record import Outcome, Verdict
from gpucheck.records.run_folder import Run
from tests.conftest import Synthetic

P, M, I, L, H = Outcome.PASS, Outcome.MISMATCH, Outcome.INAPPLICABLE, Outcome.LOST, Outcome.HARNESS  # noqa: E741


def compared(synthetic: Synthetic, first: Any, second: Any, **options: Any) -> Comparison:
    plan = synthetic.plan(cases=1)
    return compare(synthetic.run(plan, {(0, 0): first}), synthetic.run(plan, {(0, 0): second}), **options)


@pytest.mark.parametrize(
    ("first", "second", "change", "regression"),
    [
        (P, P, Change.SAME, False),
        (P, M, Change.BROKEN, True),
        (P, I, Change.MISSING, True),
        (P, L, Change.MISSING, True),
        (P, H, Change.MISSING, True),
        (M, P, Change.FIXED, False),
        (M, M, Change.STILL, False),
        (M, Outcome.CRASH, Change.STILL, False),
        (M, L, Change.GONE, False),
        (M, I, Change.GONE, False),
        (I, P, Change.PROVEN, False),
        (L, P, Change.PROVEN, False),
        (I, M, Change.APPEARED, False),
        (L, M, Change.APPEARED, False),
        (I, I, Change.OPEN, False),
        (L, I, Change.OPEN, False),
    ],
)
def test_every_pair(synthetic: Synthetic, first: Outcome, second: Outcome, change: Change, regression: bool) -> None:
    comparison = compared(synthetic, first, second)
    (row,) = comparison.rows
    assert row.change is change
    assert (comparison.regressions == [row]) == regression


def test_the_titles_and_reasons_of_both_sides(synthetic: Synthetic) -> None:
    (row,) = compared(synthetic, M, {"outcome": I, "message": "needs Triton 9"}).rows
    assert (row.first.standing, row.first.words) == (Standing.WRONG, "undetermined: wrong output")
    assert (row.second.standing, row.second.words) == (Standing.INAPPLICABLE, "needs Triton 9")


def test_rank_by_rank(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=3)
    before = synthetic.run(plan, {(0, 1): M, (1, 2): M})
    after = synthetic.run(plan, {(0, 2): M, (1, 2): M})
    comparison = compare(before, after)
    assert comparison.verdicts == (Verdict.FAIL, Verdict.FAIL)
    changes = {(row.case[7], row.rank): row.change for row in comparison.rows if row.change is not Change.SAME}
    assert changes == {("0", 1): Change.FIXED, ("0", 2): Change.BROKEN, ("1", 2): Change.STILL}


def test_a_failure_that_the_scenario_expects_is_right(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1)
    plan = replace(plan, steps=(replace(plan.steps[0], expect=ExpectedFailure()),))
    fails, passes = synthetic.run(plan, {(0, 0): M}), synthetic.run(plan)
    assert compare(fails, fails).rows[0].change is Change.SAME
    (row,) = compare(fails, passes).regressions
    assert row.second.words == "passed, though expected to fail"


def test_ranks_that_disagree_are_wrong_though_they_passed(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2)
    comparison = compare(synthetic.run(plan), synthetic.run(plan, {(0, 1): {"digests": {"y": "other"}}}))
    assert [row.rank for row in comparison.regressions] == [0, 1]
    assert comparison.regressions[0].second.words == "ranks disagree on equal inputs and kernels"


def pair(synthetic: Synthetic, *, same: bool) -> tuple[Run, Run]:
    """A run of three cases on two ranks, of which one fails, and one of two cases on one rank."""
    whole = synthetic.run(synthetic.plan(cases=3, ranks=2), {(2, 1): M})
    part = synthetic.run(synthetic.plan(cases=2, ranks=1, scenario="smoke" if same else "other"))
    return whole, part


def test_runs_of_two_scenarios_meet_in_what_both_ran(synthetic: Synthetic) -> None:
    comparison = compare(*pair(synthetic, same=False))
    assert comparison.regressions == []
    assert [(row.case[7], row.rank) for row in comparison.of(Change.SAME)] == [("0", 0), ("1", 0)]
    assert len(comparison.of(Change.LEFT_OUT)) == 4


def test_what_one_scenario_no_longer_runs_is_missing(synthetic: Synthetic) -> None:
    whole, part = pair(synthetic, same=True)
    comparison = compare(whole, part)
    missing = [(row.case[7], row.rank) for row in comparison.regressions]
    assert missing == [("0", 1), ("1", 1), ("2", 0)], "what was wrong before is not missed"
    assert all(
        row.change is Change.MISSING and row.second.standing is Standing.ABSENT for row in comparison.regressions
    )


def test_conditions_tell_cases_apart_but_for_the_device(synthetic: Synthetic) -> None:
    def placed(placement: str) -> Run:
        run: Run = synthetic.run(synthetic.plan(cases=1, under=[Conditions(placement)]))
        return run

    assert compare(placed("pinned"), placed("cpu")).rows[0].change is Change.SAME
    assert len(compare(placed("pinned"), placed("visible")).rows) == 2


def test_other_bits_are_named_and_no_regression(synthetic: Synthetic) -> None:
    first, changed = {"digests": {"y": "a", "scale": "s"}}, {"digests": {"y": "b", "scale": "s", "more": "m"}}
    comparison = compared(synthetic, first, changed)
    assert comparison.rows[0].bits == ("y",) and comparison.regressions == []
    for other in ({"inputs": "others"}, {"inputs": ""}, {"outcome": M}):  # wrong outputs differ anyway
        assert compared(synthetic, first, {**changed, **other}).rows[0].bits == ()


def test_ratios_of_time_and_error(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=3)

    def run(kernel: float, tightness: float) -> Run:
        ends = {
            (step, rank): {"seconds": {"kernel": kernel * (rank + 1)}, "tightness": tightness * step * (rank + 1)}
            for step in range(2)
            for rank in range(3)
        }
        return synthetic.run(plan, ends)

    comparison = compare(run(0.1, 0.2), run(0.3, 0.1))
    assert comparison.time_ratios == pytest.approx({"matmul/0/exact": 3, "matmul/1/exact": 3})
    assert comparison.error_ratios == pytest.approx({"matmul/1/exact": 0.5}), "0 used of a bound has no ratio"
    assert compare(run(0.0, 0.1), run(0.1, 0.1)).time_ratios == {}


def test_a_case_that_uses_ten_times_as_much_of_the_same_bound_warns(synthetic: Synthetic) -> None:
    def run(tightness: float, **changes: Any) -> dict[str, Any]:
        return {"tightness": tightness, "arithmetic": "sm_90", **changes}

    (row,) = compared(synthetic, run(0.02), run(0.4)).less_exact
    assert row.excess == pytest.approx(20) and row.change is Change.SAME
    for before, after in ((run(0.02), run(0.19)), (run(0.0), run(0.09)), (run(0.4), run(0.02))):
        assert compared(synthetic, before, after).less_exact == []
    for changes in ({"arithmetic": "sm_100"}, {"arithmetic": ""}, {"inputs": "j"}, {"outcome": M}):
        assert compared(synthetic, run(0.02), run(0.4, **changes)).less_exact == []


def test_how_wrong_a_place_is_in_both_runs(synthetic: Synthetic) -> None:
    def wrong(*counts: int) -> dict[str, Any]:
        return {"outcome": M, "mismatches": [synthetic.mismatch(wrong=count, total=8) for count in counts]}

    assert compared(synthetic, wrong(1, 4), wrong(2)).rows[0].wrong == (0.5, 0.25)
    assert compared(synthetic, wrong(1), Outcome.CRASH).rows[0].wrong is None


def test_the_environment(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1)
    software = {
        "torch": {"version": "2.1", "fingerprint": "f", "path": "/p"},
        "triton": None,
        "driver": "570.1",
        "triton_kernels": {"path": "/lib"},
    }
    newer = replace(
        plan,
        environment={"software": software},
        library={**plan.library, "content": "e" * 64, "patches": ["/p/guard.patch"]},
        scenario="gate",
        check_sources=(CheckSource(SourceKind.FILE, ("mine", "other"), ("/mine.py",), ("c" * 64,)),),
    )
    elsewhere = {(0, 0): {"device": "NVIDIA H100", "host": "pod-7"}}
    environment = compare(synthetic.run(plan), synthetic.run(newer, elsewhere)).environment
    assert environment["scenario"] == ("smoke", "gate")
    assert environment["GPU"] == ("NVIDIA H200", "NVIDIA H100") and environment["host"] == ("", "pod-7")
    assert environment["torch"] == ("2.0", "2.1") and environment["driver"] == ("", "570.1")
    assert environment["content"] == ("f" * 12, "e" * 12) and environment["patches"] == ("", "guard.patch")
    assert environment["checks mine, other"] == ("", "c" * 12)
    assert environment["seed"] == ("0", "0") and "triton_kernels" not in environment
    assert environment["triton"] == ("3.0", "")
