"""Expected failures: strict on the ranks that must fail, strict on the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.finding import Conclusion
from gpucheck.model.plan import ExpectedFailure
from gpucheck.model.record import Outcome, Record, Verdict, Violation
from tests.conftest import Synthetic

CAUSE = "wrong device context"


def concluded(
    synthetic: Synthetic, expect: ExpectedFailure, outcomes: Mapping[int, Outcome | Record], nnodes: int = 1
) -> Conclusion:
    """Two cases on two ranks a node; the second case is expected to fail, ``outcomes`` are its ranks'."""
    plan = synthetic.plan(cases=2, ranks=2, nnodes=nnodes)
    plan = replace(plan, steps=(plan.steps[0], replace(plan.steps[1], expect=expect)))
    return conclude(synthetic.run(plan, {(1, rank): outcome for rank, outcome in outcomes.items()}))


def elsewhere(synthetic: Synthetic, rank: int) -> Record:
    violations = [Violation("device", "away")]
    return synthetic.record(synthetic.plan(), 1, rank, Outcome.VIOLATION, violations=violations)


def test_a_failure_that_is_expected_is_a_pass_and_noted(synthetic: Synthetic) -> None:
    conclusion = concluded(synthetic, ExpectedFailure(ranks="others"), {1: Outcome.MISMATCH})
    assert (conclusion.verdict, conclusion.findings) == (Verdict.PASS, [])
    assert conclusion.notes == ["1 case(s) failed as the scenario expects, on rank 1"]
    assert conclusion.expected == {(1, 1)}


@pytest.mark.parametrize("outcome", [Outcome.MISMATCH, Outcome.VIOLATION, Outcome.ERROR])
def test_any_wrong_answer_will_do_where_no_cause_is_given(synthetic: Synthetic, outcome: Outcome) -> None:
    assert concluded(synthetic, ExpectedFailure(), {0: outcome, 1: outcome}).verdict is Verdict.PASS


@pytest.mark.parametrize("outcome", [Outcome.CRASH, Outcome.HANG])
def test_no_answer_at_all_will_not_do_unless_it_is_the_cause_that_is_given(
    synthetic: Synthetic, outcome: Outcome
) -> None:
    conclusion = concluded(synthetic, ExpectedFailure(), {0: outcome, 1: outcome})
    assert conclusion.verdict is Verdict.FAIL and conclusion.expected == frozenset()
    assert {finding.cause for finding in conclusion.findings} == {outcome.value}
    assert concluded(synthetic, ExpectedFailure(outcome.value), {0: outcome, 1: outcome}).verdict is Verdict.PASS


def test_an_expected_failure_that_passes_fails(synthetic: Synthetic) -> None:
    conclusion = concluded(synthetic, ExpectedFailure(CAUSE, "others"), {})
    (finding,) = conclusion.findings
    assert conclusion.verdict is Verdict.FAIL and finding.title == "passed, though expected to fail"
    assert (finding.ranks, finding.rows) == ([1], ["matmul row1"])
    assert finding.cases[0].lines == [f"passed, though the scenario expects a failure with cause '{CAUSE}'"]


def test_of_several_ranks_the_one_that_passed_is_named(synthetic: Synthetic) -> None:
    (finding,) = concluded(synthetic, ExpectedFailure(), {1: Outcome.MISMATCH}).findings
    assert (finding.title, finding.ranks) == ("passed, though expected to fail", [0])


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.HARNESS, Outcome.INAPPLICABLE])
def test_what_proves_nothing_does_not_prove_the_failure(synthetic: Synthetic, outcome: Outcome) -> None:
    conclusion = concluded(synthetic, ExpectedFailure(ranks="others"), {1: outcome})
    assert conclusion.verdict is Verdict.INCONCLUSIVE and conclusion.findings[0].ranks == [1]


def test_the_first_rank_of_each_node_must_be_clean_where_others_fail(synthetic: Synthetic) -> None:
    both = {1: Outcome.MISMATCH, 3: Outcome.MISMATCH}
    expect = ExpectedFailure(ranks="others")
    assert concluded(synthetic, expect, both, nnodes=2).verdict is Verdict.PASS
    conclusion = concluded(synthetic, expect, {**both, 2: Outcome.MISMATCH}, nnodes=2)
    assert conclusion.verdict is Verdict.FAIL
    assert [(finding.title, finding.ranks) for finding in conclusion.findings] == [("undetermined: wrong output", [2])]


def test_another_cause_than_the_expected_one_stays_a_finding(synthetic: Synthetic) -> None:
    expect = ExpectedFailure(CAUSE, "others")
    assert concluded(synthetic, expect, {1: elsewhere(synthetic, 1)}).verdict is Verdict.PASS
    conclusion = concluded(synthetic, expect, {1: Outcome.MISMATCH})
    assert conclusion.verdict is Verdict.FAIL and conclusion.findings[0].title == "undetermined: wrong output"


def test_a_run_of_expected_failures_only_is_a_pass(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2)
    plan = replace(plan, steps=(replace(plan.steps[0], expect=ExpectedFailure()),))
    run = synthetic.run(plan, {(0, rank): Outcome.MISMATCH for rank in range(2)})
    assert conclude(run).verdict is Verdict.PASS
