from __future__ import annotations

import json
from dataclasses import replace

from gpucheck.diagnose.compare import Comparison, compare
from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import Run
from gpucheck.report.comparison import COMPARISON_SCHEMA, MOST_LINES, lines, to_json
from tests.conftest import Synthetic

NAMES = ("runs/a", "runs/b")


def made(synthetic: Synthetic) -> Comparison:
    """One of each kind, on two ranks."""
    plan = synthetic.plan(cases=6, ranks=2)
    before = {(1, 0): Outcome.MISMATCH, (1, 1): Outcome.MISMATCH, (2, 1): Outcome.CRASH, (4, 0): Outcome.LOST}
    after = {(0, 1): Outcome.MISMATCH, (2, 1): Outcome.MISMATCH, (3, 0): Outcome.LOST, (4, 0): Outcome.HANG}
    changed = {"digests": {"y": "other"}}
    both = {**after, (5, 0): changed, (5, 1): changed}
    return compare(synthetic.run(plan, before), synthetic.run(plan, both))


def test_the_whole_comparison(synthetic: Synthetic) -> None:
    text = list(lines(made(synthetic), NAMES))
    assert text[:4] == [
        "2 REGRESSIONS",
        "1 newly broken, 1 missing, 1 broken, not right before, 2 fixed, 1 still broken, 6 right in both "
        "(cases x ranks)",
        "A  FAIL          runs/a",
        "B  FAIL          runs/b",
    ]
    assert text[text.index("newly broken (1)") + 1] == "  matmul/0/exact  rank 1  undetermined: wrong output"
    assert text[text.index("missing (1)") + 1].startswith("  matmul/3/exact  rank 0  not judged: lost")
    assert text[text.index("fixed (1)") + 1] == "  matmul/1/exact  ranks 0, 1  was undetermined: wrong output"
    assert (
        text[text.index("still broken (1)") + 1] == "  matmul/2/exact  rank 1  undetermined: wrong output (was crash)"
    )
    assert text[text.index("broken, not right before (1)") + 1] == "  matmul/4/exact  rank 0  hang (was not judged)"
    assert text[text.index("other bits from equal inputs, right in both (1)") + 1] == "  matmul/5/exact  ranks 0, 1  y"
    order = [line.partition(" (")[0] for line in text if line and not line.startswith(" ")]
    assert order.index("newly broken") < order.index("missing") < order.index("fixed") < order.index("still broken")


def test_how_wrong_what_is_still_broken_is(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1)
    runs = [
        synthetic.run(plan, {(0, 0): {"outcome": Outcome.MISMATCH, "mismatches": [mismatch]}})
        for mismatch in (synthetic.mismatch(wrong=2, total=8), synthetic.mismatch(wrong=1, total=8))
    ]
    said = "  matmul/0/exact  rank 0  undetermined: wrong output"
    assert said + " (12.50% of elements wrong, were 25.00%)" in list(lines(compare(*runs), NAMES))
    assert said in list(lines(compare(runs[0], runs[0]), NAMES))


def test_verbose_shows_every_case_with_its_ratios(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2)
    runs = []
    for kernel, tightness in ((0.1, 0.2), (0.3, 0.1)):
        end = {"seconds": {"kernel": kernel}, "tightness": tightness}
        runs.append(synthetic.run(plan, {(0, 0): end, (0, 1): end}))
    text = list(lines(compare(*runs), NAMES, verbose=True))
    assert text[text.index("right in both (1)") + 1] == "  matmul/0/exact  ranks 0, 1  error x 0.50, time x 3.00"
    assert "right in both (1)" not in list(lines(compare(*runs), NAMES))


def test_no_regression(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan())
    text = list(lines(compare(run, run), NAMES))
    assert text[:2] == ["NO REGRESSION", "2 right in both (cases x ranks)"]
    assert text[5:] == ["environment", text[6]] and text[6].startswith("  same  scenario smoke, seed 0, ranks 1, ")


def test_what_differs_of_the_environment_comes_first(synthetic: Synthetic) -> None:
    plan = synthetic.plan()
    newer = replace(plan, environment={"software": {"torch": {"version": "2.1"}}}, seed=1)
    text = list(lines(compare(synthetic.run(plan), synthetic.run(newer)), NAMES))
    start = text.index("environment")
    assert text[start + 1 : start + 4] == ["  seed    0 -> 1", "  torch   2.0 -> 2.1", "  triton  3.0 -> none"]


def test_long_lists_are_cut_unless_all_is_asked_for(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=MOST_LINES + 2)
    comparison = compare(
        synthetic.run(plan), synthetic.run(plan, {(n, 0): Outcome.MISMATCH for n in range(MOST_LINES + 2)})
    )
    text = list(lines(comparison, NAMES))
    assert f"newly broken ({MOST_LINES + 2})" in text and "  ... and 2 more; -v shows all" in text
    assert len(list(lines(comparison, NAMES, verbose=True))) == len(text) + 1


def test_what_only_one_run_has(synthetic: Synthetic) -> None:
    first = synthetic.run(synthetic.plan(cases=5, ranks=2))
    second = synthetic.run(synthetic.plan(cases=1, ranks=3, scenario="other"))
    text = list(lines(compare(first, second), NAMES))
    assert "left out, in A only: 4 cases on ranks 0, 1 (matmul/1/exact, matmul/2/exact, matmul/3/exact, ...)" in text
    assert "left out, in B only: 1 case on rank 2 (matmul/0/exact)" in text


def test_what_became_less_exact_is_listed_and_is_no_regression(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2)

    def run(tightness: float) -> Run:
        return synthetic.run(plan, dict.fromkeys([(0, 0), (0, 1)], {"tightness": tightness}))

    text = "\n".join(lines(compare(run(0.01), run(0.25)), ("a", "b")))
    assert text.startswith("NO REGRESSION")
    assert (
        "right, but warns: uses at least ten times as much of its error bound (1)\n"
        "  matmul/0/exact  ranks 0, 1  25.0% of its bound, was 1.0%" in text
    )
    assert "warns" not in "\n".join(lines(compare(run(0.25), run(0.01)), ("a", "b")))


def test_times_name_the_extremes(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=3)

    def run(*times: float) -> Run:
        return synthetic.run(plan, {(n, 0): {"seconds": {"kernel": time}} for n, time in enumerate(times)})

    (line,) = [line for line in lines(compare(run(1, 1, 1), run(1.0, 3.0, 0.5)), NAMES) if line.startswith("time")]
    assert line == (
        "time  B / A of the kernels: 1.00 in the median of 3 cases, most 3.00 (matmul/1/exact), "
        "least 0.50 (matmul/2/exact)"
    )


def test_json(synthetic: Synthetic) -> None:
    content = json.loads(json.dumps(to_json(made(synthetic), NAMES), allow_nan=False))
    assert content["schema"] == COMPARISON_SCHEMA
    assert content["runs"] == [{"folder": "runs/a", "verdict": "FAIL"}, {"folder": "runs/b", "verdict": "FAIL"}]
    assert content["regressions"] == 2 and content["counts"]["newly broken"] == 1
    assert content["environment"]["scenario"] == ["smoke", "smoke"]
    rows = {(row["case"], row["rank"]): row for row in content["rows"]}
    assert len(rows) == 12
    row = rows[("matmul/2/exact", 1)]
    assert row["change"] == "still broken"
    assert row["first"] == {"standing": "wrong", "words": "crash"}
    assert rows[("matmul/5/exact", 0)]["bits"] == ["y"]
