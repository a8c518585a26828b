from __future__ import annotations

import math

import pytest

from gpucheck.diagnose.symptoms import BY_OUTCOME
from gpucheck.diagnose.wording import lines_of, mismatch_lines, rank_list, worst_words
from gpucheck.model.record import LargeTensor, Launch, Outcome, Violation
from tests.conftest import Synthetic


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([0], "rank 0"),
        ([0, 1], "ranks 0, 1"),
        ([1, 2, 3, 4, 5, 6, 7], "ranks 1-7"),
        ([7, 0, 3, 2, 2], "ranks 0, 2, 3, 7"),
        ([0, 2, 3, 4, 9, 10], "ranks 0, 2-4, 9, 10"),
        ([10, 9, 8], "ranks 8-10"),
    ],
)
def test_rank_lists(ranks: list[int], words: str) -> None:
    assert rank_list(ranks) == words


def test_every_outcome_has_a_title() -> None:
    assert set(BY_OUTCOME) == set(Outcome) - {Outcome.PASS}


def test_a_mismatch_in_words(synthetic: Synthetic) -> None:
    mismatch = synthetic.mismatch(
        wrong=20, total=80, bias=-1.0, nan=3, inf=1, first_nonfinite=[0, 2], poison=2, region="rows 3-4 of 8"
    )
    assert mismatch_lines(mismatch) == [
        "y: rows 3-4 of 8",
        "20 of 80 elements wrong (25.00%), first at (1, 0); "
        "worst at (1, 0): expected 1, got 2, 3 ulp (exact data: no error allowed)",
        "3 NaN and 1 Inf from (0, 2); 2 wrong elements still hold the poison they were allocated with; "
        "nearly all below the reference",
    ]


def test_bits_stand_for_bias(synthetic: Synthetic) -> None:
    assert mismatch_lines(synthetic.mismatch(wrong=20, total=80, bits=[7, 14]))[2:] == [
        "each differs in one bit: 7, 14"
    ]


def test_the_worst_element_by_method(synthetic: Synthetic) -> None:
    bound = worst_words(synthetic.mismatch(method="bound", expected=0.1, got=0.35, bound=0.001, ulps=9))
    assert bound == "worst at (1, 0): expected 0.1, got 0.35, off by 0.25 (bound 0.001)"
    assert worst_words(synthetic.mismatch(method="integer", ulps=None)).endswith("got 2 (integers: no error allowed)")
    integers = synthetic.mismatch(method="integer", ulps=None, expected=-1048297791.0, got=2.0**31)
    assert "expected -1048297791, got 2147483648 (integers" in worst_words(integers)
    assert "got 1e+20" in worst_words(synthetic.mismatch(method="bound", got=1e20))
    assert "got NaN (bound" in worst_words(synthetic.mismatch(method="bound", got=None))
    lost = synthetic.mismatch(method="bound", expected=math.nan, got=1.5, bound=0.25)
    assert worst_words(lost).endswith("expected NaN, got 1.5 (bound 0.25)")
    assert "got inf" in worst_words(synthetic.mismatch(got=math.inf, ulps=None))
    assert "ulp" not in worst_words(synthetic.mismatch(got=math.inf, ulps=None))


def test_launches_are_told_beside_wrong_numbers_only(synthetic: Synthetic) -> None:
    launches = [Launch("_matmul_ogs", 2, 1, [], 0, "", "", 0, 0, []), Launch("_sum", 1, None, [], 0, "", "", 0, 0, [])]
    plan = synthetic.plan()
    wrong = synthetic.record(plan, 0, 0, Outcome.MISMATCH, launches=launches, violations=[Violation("guard", "g")])
    assert lines_of(wrong)[-2:] == ["guard: g", "launched _matmul_ogs x2, _sum"]
    crashed = synthetic.record(plan, 0, 0, Outcome.CRASH, launches=launches, message="killed")
    assert lines_of(crashed) == ["killed"]


def test_of_many_wrong_outputs_the_first_are_told_in_full(synthetic: Synthetic) -> None:
    wrong = [synthetic.mismatch(output=name) for name in "abcdef"]
    record = synthetic.record(synthetic.plan(), 0, 0, Outcome.MISMATCH, mismatches=wrong, message="begins with a")
    lines = lines_of(record)
    assert lines[0] == "begins with a" and lines[-1] == "wrong too: e, f"
    assert [line for line in lines if line.endswith("row 1 of 2")] == [f"{name}: row 1 of 2" for name in "abcd"]


def test_what_may_matter_about_launches_is_remarked(synthetic: Synthetic) -> None:
    plan = synthetic.plan()
    launches = [
        Launch("_add", 9, 0, ["cuda:0"], 0, "h", "sm_90", 0, 4, [1], tried=3),
        Launch("_sum", 1, 0, ["cuda:0"], 0, "h", "sm_90", 0, 4, [0, 1]),
        Launch("_mul", 1, 0, ["cuda:0"], 0, "h", "sm_90", 0, 4, [4]),
    ]
    lines = lines_of(synthetic.record(plan, 0, 0, Outcome.MISMATCH, launches=launches))
    assert lines[-2:] == [
        "_add is autotuned: 3 configurations were tried on the tensors of the first call",
        "_sum was launched with an empty grid",
    ]


def test_a_hint_at_offsets_stands_below_the_numbers(synthetic: Synthetic) -> None:
    told = mismatch_lines(synthetic.mismatch(wraps="offset arithmetic wraps: wrong are rows 4, 5"))
    assert told[-1] == "hint: offset arithmetic wraps: wrong are rows 4, 5"


def test_a_crash_tells_of_arguments_beyond_32_bits(synthetic: Synthetic) -> None:
    far = LargeTensor("cache_ptr", "int8", 1, [2054, 1 << 20], [1 << 20, 1])
    launch = Launch("_pick", 1, 0, ["cuda:0"], 0, "h", "sm_90", 0, 4, [1], large=[far])
    for outcome, said in ((Outcome.CRASH, True), (Outcome.VIOLATION, False)):
        lines = lines_of(synthetic.record(synthetic.plan(), 0, 0, outcome, launches=[launch]))
        words = "offsets of 32 bits do not reach all of an argument of _pick: cache_ptr, int8 of shape (2054, 1048576)"
        assert (words in lines) is said


def test_a_victim_says_where_it_is_wrong_and_by_whom(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2)
    record = synthetic.record(plan, 0, 0, Outcome.MISMATCH, victim_of=1)
    assert lines_of(record) == ["wrong by what rank 1 gave: y: row 1 of 2"]
