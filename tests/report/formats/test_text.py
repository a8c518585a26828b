from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Step
from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import Run
from gpucheck.report import blocks
from gpucheck.report.formats.text import MARKS, MEANING, lines, plain
from gpucheck.report.terminal import show
from tests.conftest import Synthetic


def report_of(run: Run) -> blocks.Report:
    return blocks.build(run, conclude(run))


def text_of(run: Run, **options: Any) -> list[str]:
    return plain(report_of(run), **options).splitlines()


PASSED: dict[tuple[int, int], Outcome] = {}
FAILED = {(0, 1): Outcome.MISMATCH, (0, 2): Outcome.MISMATCH, (1, 0): Outcome.LOST}


@pytest.mark.parametrize("outcomes", [PASSED, FAILED], ids=["pass", "failure"])
def test_a_report_from_top_to_bottom(
    synthetic: Synthetic, snapshot: Callable[[str], None], outcomes: dict[tuple[int, int], Outcome]
) -> None:
    snapshot(plain(report_of(synthetic.run(synthetic.plan(cases=2, ranks=3), outcomes))))


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_a_mark_and_a_meaning(synthetic: Synthetic, outcome: Outcome) -> None:
    mark = MARKS[outcome][0]
    text = text_of(synthetic.run(synthetic.plan(cases=1), {(0, 0): outcome}))
    assert text[4].split()[-1] == mark
    if outcome is Outcome.PASS:
        assert text[5] == ""
    else:
        assert text[5] == f"{mark} {MEANING[mark]}"
    assert len({mark for mark, _ in MARKS.values()}) == len(Outcome)


def test_the_worst_case_of_a_row_decides_its_cell(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=3)
    case = plan.steps[0].case
    steps = tuple(Step(type(case)(**{**vars(step.case), "row": "matmul"})) for step in plan.steps)
    run = synthetic.run(synthetic.plan(steps=steps), {(1, 0): Outcome.LOST, (2, 0): Outcome.INAPPLICABLE})
    assert text_of(run)[4] == "matmul      3  LO"
    for outcome in set(Outcome) - {Outcome.PASS, Outcome.INAPPLICABLE}:
        run = synthetic.run(synthetic.plan(steps=steps), {(2, 0): outcome})
        assert text_of(run)[4].endswith(MARKS[outcome][0]), "one bad case among good ones must show"


def test_placements_have_rows_of_their_own(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1)
    steps = (plan.steps[0], Step(plan.steps[0].case, Conditions("visible")))
    text = text_of(synthetic.run(synthetic.plan(steps=steps), {(1, 0): Outcome.CRASH}))
    assert text[4:6] == ["matmul row0                1  ok", "matmul row0 (visible)      1  CR"]


def test_findings_are_cut_unless_verbose(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=9), {(step, 0): Outcome.LOST for step in range(9)})
    assert sum("   case " in line for line in text_of(run)) == 3
    assert "   ... and 6 more; -v shows all" in text_of(run)
    assert sum("   case " in line for line in text_of(run, verbose=True)) == 9
    assert not any("more; -v" in line for line in text_of(run, verbose=True))


def test_many_ranks_stay_aligned(synthetic: Synthetic) -> None:
    text = text_of(synthetic.run(synthetic.plan(cases=1, ranks=128), {(0, 127): Outcome.HANG}))
    assert len(text[3]) == len(text[4]) and text[4].endswith(" ok  HG") and text[3].endswith("126 127")


def long_run(synthetic: Synthetic) -> Run:
    plan = synthetic.plan(cases=1)
    mismatch = synthetic.mismatch(region="[bold]rows[/bold] " + "x" * 300)
    record = synthetic.record(plan, 0, 0, Outcome.MISMATCH, mismatches=[mismatch], message="[red]boo[/] :smile:")
    return synthetic.run(plan, {(0, 0): record})


def test_plain_text_is_neither_cut_nor_coloured_nor_read_as_markup(synthetic: Synthetic) -> None:
    out = io.StringIO()
    show(report_of(long_run(synthetic)), Console(file=out, width=80))
    text = out.getvalue()
    assert "y: [bold]rows[/bold] " + "x" * 300 in text and "[red]boo[/] :smile:" in text
    assert "\x1b" not in text and not [line for line in text.splitlines() if line != line.rstrip()]
    assert text == plain(report_of(long_run(synthetic))) + "\n"


def test_a_terminal_gets_colours_and_the_same_words(synthetic: Synthetic) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="standard", legacy_windows=False)
    show(report_of(long_run(synthetic)), console)
    text = out.getvalue()
    assert "\x1b[1;31mFAIL" in text and "[red]boo[/] :smile:" in text
    assert text.count("x") >= 300  # folded, not cut
    words = {word for line in lines(report_of(long_run(synthetic))) for piece, _ in line for word in piece.split()}
    assert not [word for word in words if len(word) < 20 and word not in text]


def test_hostile_names_neither_move_the_cursor_nor_stop_the_report(hostile: blocks.Report) -> None:
    out = io.StringIO()
    show(hostile, Console(file=out, width=80, force_terminal=True, color_system=None, legacy_windows=False))
    for text in (plain(hostile, verbose=True), out.getvalue()):
        assert text.encode() and not set("\x00\x07\x1b\x85\u202e\ud800") & set(text)
    assert r"\x1b[31mred" in plain(hostile)


def test_cpu_runs_say_so(synthetic: Synthetic) -> None:
    def cpu(ranks: int) -> str:
        ends = {(0, rank): {"device": "cpu"} for rank in range(ranks)}
        return text_of(synthetic.run(synthetic.plan(cases=1, ranks=ranks, device="cpu"), ends))[1]

    assert "1 rank on the CPU" in cpu(1) and "2 ranks on the CPU" in cpu(2)


def test_odd_numbers_do_not_stop_the_report(synthetic: Synthetic) -> None:
    mismatch = synthetic.mismatch(expected=math.inf, got=None, bound=math.nan, ulps=None, method="bound")
    run = synthetic.run(synthetic.plan(cases=1), {(0, 0): {"outcome": Outcome.MISMATCH, "mismatches": [mismatch]}})
    assert any("expected inf, got NaN (bound nan)" in line for line in text_of(run))


def test_a_run_of_no_cases_can_be_shown(synthetic: Synthetic) -> None:
    assert text_of(synthetic.run(synthetic.plan(cases=0)))[0].startswith("NOTHING RAN")
