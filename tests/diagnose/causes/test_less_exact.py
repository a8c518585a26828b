"""Ranks that are right and err far more than their peers: who is warned of, who is not, and what the warning says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.causes.less_exact import excess, warnings
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Outcome, Verdict
from gpucheck.records.run_folder import Run
from tests.conftest import Synthetic


def used(synthetic: Synthetic, *shares: float, **others: Any) -> Run:
    """Two cases on as many ranks as there are shares of the bound, of which rank 0 may differ in more."""
    plan = synthetic.plan(cases=2, ranks=len(shares))
    run = synthetic.run(plan)
    for (step, rank), record in run.records.items():
        changes = others if rank == 0 else {}
        run.records[(step, rank)] = replace(record, tightness=shares[rank] if step else 0.02, **changes)
    return run


def test_a_rank_that_uses_ten_times_as_much_of_a_bound_is_warned_of_and_the_verdict_stays(synthetic: Synthetic) -> None:
    conclusion = conclude(used(synthetic, 0.03, 0.03, 0.31, 0.031))
    (finding,) = conclusion.findings
    assert conclusion.verdict is Verdict.PASS and finding.warns and not finding.fails and finding.ranks == [2]
    assert finding.title == "less exact than its peers: up to 31% of a bound used" and finding.fix
    assert finding.evidence == [
        "in 1 case(s) it uses at least 10 times as much of the bound as the median of ranks 0, 1, 3"
    ]
    (seen,) = finding.cases
    assert seen.case == "matmul/1/exact" and seen.lines == ["uses 31.0% of its error bound, its peers 3.0%"]


@pytest.mark.parametrize(
    ("shares", "ranks"),
    [
        ((0.5, 0.0), [0]),  # peers whose sums are exact
        ((0.02, 0.19), []),  # not ten times as much
        ((0.0, 0.09), []),  # little, and other orders of the same sum differ by as much
        ((0.0, 0.1), [1]),
        ((0.9, 0.9, 0.02), []),  # the median of the others is large
        ((0.7,), []),  # nobody to compare with
    ],
)
def test_small_shares_and_small_differences_are_no_warning(
    synthetic: Synthetic, shares: tuple[float, ...], ranks: list[int]
) -> None:
    assert [finding.ranks for finding in warnings(used(synthetic, *shares))] == [[rank] for rank in ranks]


@pytest.mark.parametrize(
    "other", [{"device": "another GPU"}, {"arithmetic": "sm_89"}, {"inputs": "other"}, {"outcome": Outcome.MISMATCH}]
)
def test_only_ranks_with_the_same_bound_are_peers(synthetic: Synthetic, other: dict[str, Any]) -> None:
    assert warnings(used(synthetic, 0.01, 0.9))
    assert not warnings(used(synthetic, 0.01, 0.9, **other))


def test_what_counts_is_the_larger_of_the_others_share_and_the_floor() -> None:
    assert excess(0.5, 0.05) == pytest.approx(10) and excess(0.1, 0.0) == pytest.approx(10)
    assert excess(0.49, 0.05) is None and excess(0.09, 1e-6) is None and excess(0.0, 0.0) is None
