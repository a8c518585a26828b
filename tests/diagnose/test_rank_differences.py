"""Ranks of one kind did the same, or the report says who did not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.finding import Conclusion
from gpucheck.model.record import Launch, Outcome, Verdict
from tests.conftest import Synthetic

REFUSED = "the library does not implement this: no"


def concluded(synthetic: Synthetic, ranks: int, changes: dict[int, dict[str, Any]], **outcome: Any) -> Conclusion:
    """Two cases of which the second is optional, and its records but for these ranks right."""
    plan = synthetic.plan(cases=2, ranks=ranks, optional=[1])
    return conclude(synthetic.run(plan, {(1, rank): change for rank, change in changes.items()}, **outcome))


def inapplicable(**more: Any) -> dict[str, Any]:
    return {"outcome": Outcome.INAPPLICABLE, "message": REFUSED, **more}


def test_a_case_that_one_rank_refuses_and_its_like_judge_leaves_the_run_open(synthetic: Synthetic) -> None:
    conclusion = concluded(synthetic, 4, {1: inapplicable(), 3: inapplicable(message="another reason")})
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    first, second = conclusion.findings
    assert first.title == second.title == "judged on some ranks only" and not first.fails and not first.warns
    assert (first.ranks, second.ranks, first.cases[0].case) == ([1], [3], "matmul/1/exact")
    assert first.cases[0].lines == [f"inapplicable on rank 1: {REFUSED}", "judged on ranks 0, 2"]


def test_a_rank_that_failed_has_judged_as_well(synthetic: Synthetic) -> None:
    conclusion = concluded(synthetic, 2, {0: {"outcome": Outcome.MISMATCH}, 1: inapplicable()})
    assert conclusion.verdict is Verdict.FAIL
    assert "judged on some ranks only" in {finding.title for finding in conclusion.findings}


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (2, {0: inapplicable(), 1: inapplicable()}),  # the library's own limit
        (2, {1: inapplicable(device="NVIDIA A100")}),  # another GPU
        (2, {0: inapplicable(), 1: {"outcome": Outcome.LOST}}),  # nobody judged it
    ],
)
def test_what_a_library_or_a_kind_of_gpu_does_not_offer_says_nothing_of_ranks(
    synthetic: Synthetic, ranks: int, changes: dict[int, dict[str, Any]]
) -> None:
    titles = {finding.title for finding in concluded(synthetic, ranks, changes).findings}
    assert "judged on some ranks only" not in titles


def test_nodes_with_other_software_are_of_another_kind(synthetic: Synthetic) -> None:
    nodes = [{"number": 1, "host": "b", "state": "ended", "code": 0, "software": {"torch": {"version": "3"}}}]
    plan = replace(synthetic.plan(cases=2, ranks=1, nnodes=2, optional=[1]))
    assert conclude(synthetic.run(plan, {(1, 1): inapplicable()}, nodes=nodes)).findings == []
    assert conclude(synthetic.run(plan, {(1, 1): inapplicable()})).findings != []


def test_a_rank_that_judges_nothing_says_why(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=2, optional=[0, 1])
    (finding,) = conclude(synthetic.run(plan, {(0, 1): inapplicable(), (1, 1): inapplicable()})).findings
    assert (finding.title, finding.ranks) == ("nothing was judged on a rank", [1])
    assert finding.cases[0].lines[1:] == [REFUSED]


def test_other_inputs_beside_each_other_leave_the_run_open(synthetic: Synthetic) -> None:
    conclusion = concluded(synthetic, 3, {2: {"inputs": "other", "digests": {"y": "other"}}})
    (finding,) = conclusion.findings
    assert conclusion.verdict is Verdict.INCONCLUSIVE and finding.ranks == [2]
    assert finding.title == "ranks of one machine had other inputs"
    assert finding.cases[0].lines == ["the bytes of the inputs differ: ranks 0, 1 against rank 2"]
    assert concluded(synthetic, 3, {2: {"inputs": "other", "host": "another"}}).findings == [], "made there anew"


def launches(name: str = "_matmul_ogs", digest: str = "h", **configuration: int) -> dict[str, Any]:
    made = Launch(name, 1, 0, [], 0, digest, "sm_90", 0, 8, [1], configuration=configuration)
    return {"launches": [made]}


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ({"BLOCK_M": 32}, {"BLOCK_M": 64, "SPLIT_K": 1}, "rank 1 launched _matmul_ogs with BLOCK_M 32, ranks 0, 2 _ma"),
        ({"name": "_p_matmul_ogs"}, {}, "rank 1 launched _p_matmul_ogs, ranks 0, 2 _matmul_ogs, and all are right"),
        ({"digest": "x"}, {}, "rank 1 launched _matmul_ogs as x, ranks 0, 2 _matmul_ogs as h, and all are right"),
    ],
)
def test_other_kernels_than_on_ranks_alike_are_told(synthetic: Synthetic, mine: Any, theirs: Any, words: str) -> None:
    usual = launches(**theirs)
    conclusion = concluded(synthetic, 3, {0: usual, 1: {**launches(**mine), "digests": {"y": "other"}}, 2: usual})
    assert conclusion.verdict is Verdict.PASS, "another valid choice, whose bits may be others"
    assert any(note.startswith(words) and "matmul/1/exact" in note for note in conclusion.notes), conclusion.notes
    alike = concluded(synthetic, 3, dict.fromkeys(range(3), usual))
    assert not any("launched" in note for note in alike.notes)
