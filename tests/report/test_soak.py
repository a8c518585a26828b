"""Passes and failure rates of a run that repeats its plan."""

from __future__ import annotations

from gpucheck.diagnose.conclude import conclude
from gpucheck.records.run_folder import Run, Tally
from gpucheck.report import blocks
from gpucheck.report.formats.text import plain
from gpucheck.report.soak import MOST_CASES, soak_summary
from tests.conftest import Synthetic


def soaked(synthetic: Synthetic, cases: int = 2) -> Run:
    run: Run = synthetic.run(synthetic.plan(cases=cases, ranks=2, duration=600.0))
    run.tallies = {(step, rank): Tally(40) for step in range(cases) for rank in (0, 1)}
    run.ends = {0: {}, 1: {}}
    return run


def test_a_line_for_each_rank_and_each_case_that_failed(synthetic: Synthetic) -> None:
    run = soaked(synthetic)
    run.tallies[(1, 1)] = Tally(41, 4)
    assert soak_summary(run) == [
        "rank 0: 40 passes, 0 of 80 case-runs failed; rate 0.00%, 95% interval 0.00% to 4.58%",
        "rank 1: 41 passes, 4 of 81 case-runs failed; rate 4.94%, 95% interval 1.94% to 12.02%",
        "rank 1, matmul/1/exact: 4 of 41 failed; rate 9.76%, 95% interval 3.86% to 22.55%",
    ]


def test_it_stands_in_the_report(synthetic: Synthetic) -> None:
    run = soaked(synthetic)
    text = plain(blocks.build(run, conclude(run)))
    assert "note  rank 0: 40 passes, 0 of 80 case-runs failed" in text


def test_a_run_of_one_pass_has_none(synthetic: Synthetic) -> None:
    assert soak_summary(synthetic.run(synthetic.plan())) == []


def test_a_rank_without_results_and_many_failing_cases(synthetic: Synthetic) -> None:
    run = soaked(synthetic, cases=MOST_CASES + 5)
    run.tallies = {(step, 0): Tally(2, 1) for step in range(MOST_CASES + 5)}
    lines = soak_summary(run)
    assert lines[1] == "rank 1: no case ended" and lines[-1] == "... and 5 more cases"
    assert len(lines) == 2 + MOST_CASES + 1
