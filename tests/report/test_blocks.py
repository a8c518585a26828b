from __future__ import annotations

from dataclasses import replace

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import Conditions
from gpucheck.model.finding import Finding
from gpucheck.model.plan import ExpectedFailure
from gpucheck.model.record import Outcome
from gpucheck.report import blocks
from gpucheck.report.blocks import Cell, Report
from tests.conftest import Synthetic


def test_a_cell_of_expected_failures_only_has_no_worst_case() -> None:
    assert Cell({}, expected=2).worst is None
    assert Cell({"mismatch": 1}, expected=2).worst is Outcome.MISMATCH


def test_expected_failures_are_counted_apart(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2)
    stressed = Conditions("peer", late=True, repeat=3)
    step = replace(plan.steps[0], expect=ExpectedFailure(ranks="others"), conditions=stressed)
    run = synthetic.run(replace(plan, steps=(step,)), {(0, 1): Outcome.MISMATCH})
    report = blocks.build(run, conclude(run))
    assert report.verdict == "PASS"
    assert report.rows == [("matmul row0 (peer, late)", 1, [Cell({"pass": 1}), Cell({}, expected=1)])]
    assert [(result.row, result.conditions, result.expected) for result in report.results] == [
        ("matmul row0 (peer, late)", stressed, False),
        ("matmul row0 (peer, late)", stressed, True),
    ]


def test_patches_show_in_the_headline(synthetic: Synthetic) -> None:
    plan = synthetic.plan()
    run = synthetic.run(replace(plan, library={**plan.library, "patches": ["/a/guard.patch", "/b/two.diff"]}))
    assert "triton_kernels B (path, ffffffff) + guard.patch + two.diff" in blocks.build(run, conclude(run)).headline


def test_cells_without_a_bad_case() -> None:
    assert Cell({"pass": 1, "inapplicable": 9}).worst is Outcome.PASS
    assert Cell({"inapplicable": 2}).worst is Outcome.INAPPLICABLE


def test_time_is_split_and_adds_up(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=2)
    seconds = {"compile": 1.0, "launch": 0.5, "judge": 0.25}
    run = synthetic.run(plan, {(step, rank): {"seconds": seconds} for step in range(2) for rank in range(2)})
    run.starts = {0: {"import_seconds": 2.0}, 1: {"import_seconds": 1.5}}
    report = blocks.build(run, conclude(run))
    assert report.stages["compile"] == 2.0 and report.stages["judge"] == 0.5
    assert report.timing[0] == "wall 12.5 s = import 2.0 + compile 2.0 + launches 1.0 + harness 7.5"
    assert "compile 2.0 s, launch 1.0 s, judge 0.5 s" in report.timing[1]


def test_cases_that_ran_at_once_are_not_summed_to_more_than_there_was(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(), {(0, 0): {"seconds": {"compile": 6.0, "launch": 18.0}}})
    run.starts, run.ends = {0: {"import_seconds": 2.0}}, {0: {"lanes": 3}}
    (line,) = (line for line in blocks.build(run, conclude(run)).timing if line.startswith("wall"))
    assert line.startswith("wall 12.5 s = import 2.0 + compile 2.0 + launches 6.0 + harness 2.5; a rank ran cases in 3")


def test_who_compiled_and_who_waited_is_told(synthetic: Synthetic) -> None:
    plan = synthetic.plan(ranks=2)
    run = synthetic.run(plan, {(0, rank): {"seconds": {"inputs": 0.5, "reference": 1.5}} for rank in range(2)})
    run.starts = {0: {"import_seconds": 2.0}}
    run.ends = {0: {"compiled": 3, "compilers": 10, "compiled_ahead": 120}, 1: {"compiled": 4}}
    words = "120 kernels compiled ahead by 10 processes, 7 compiled by the ranks; per rank, 0.5 s of waiting for inputs"
    assert any(line.startswith(words) for line in blocks.build(run, conclude(run)).timing)
    run.ends = {0: {"compiled": 1}}
    assert any(line.startswith("1 kernel compiled by the ranks") for line in blocks.build(run, conclude(run)).timing)
    run.ends = {0: {"children": 1}}
    assert not any("compiled" in line for line in blocks.build(run, conclude(run)).timing), "of an older version"


def test_without_times_no_time_is_shown(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan())
    assert blocks.build(run, conclude(run)).timing == []


def test_what_findings_say_is_found_by_case_and_rank(busy: Report) -> None:
    told = busy.findings_by_result()
    for result in busy.results:
        found = told.get((result.label, result.record.rank), [])
        quiet = result.record.outcome is Outcome.PASS or result.expected
        assert bool(found) is not quiet
        assert all(result.record.rank in failed_case.ranks for _, failed_case in found)


def test_places_tell_where_ranks_ran_and_where_their_time_went(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=2)
    seconds = {"compile": 1.0, "launch": 0.5, "kernel": 0.25, "tea": 0.125}
    gpu = {"gpu": "GPU-a", "bus": "0000:3B:00.0"}
    ends = {(0, 0): {"seconds": seconds}, (1, 0): {"seconds": seconds, **gpu}}
    run = synthetic.run(plan, {**ends, (0, 1): Outcome.LOST, (1, 1): Outcome.LOST})
    run.records = {key: replace(record, device="") if key[1] else record for key, record in run.records.items()}
    run.starts = {0: {"import_seconds": 2.0, "host": "a"}}
    report = blocks.build(run, conclude(run))
    first, second = report.places
    assert (first.rank, first.host, first.device, first.import_seconds) == (0, "a", "NVIDIA H200", 2.0)
    assert (second.rank, second.host, second.device, second.import_seconds) == (1, "", "", 0.0)
    assert (first.gpu, first.bus) == tuple(gpu.values()) and (second.gpu, second.bus) == ("", "")
    run.gpus = {1: {"uuid": "GPU-b"}}
    assert blocks.build(run, conclude(run)).places[1].gpu == "GPU-b", "as nvidia-smi said, where nothing ran"
    assert first.seconds["compile"] == 2.0 and first.seconds["launch"] == 1.0 and not any(second.seconds.values())
    assert first.seconds["tea"] == 0.25, "a stage that is new takes its time all the same"
    assert report.results[0].seconds == 1.625 and "kernel" not in first.seconds


def test_what_is_unusual_about_processes_shows_in_the_headline(synthetic: Synthetic) -> None:
    plan = replace(synthetic.plan(), debug=True, isolate="case")
    shown = blocks.build(run := synthetic.run(plan), conclude(run)).headline
    assert "debug: launches waited for, device assertions compiled in" in shown and "a process for each case" in shown


def test_fresh_processes_have_their_price(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(ranks=2))
    run.starts = {0: {}, 1: {}}
    run.ends = {rank: {"children": 1 + 3 * rank, "child_seconds": 0.5 + rank} for rank in (0, 1)}
    assert "5 processes started for the ranks, 0.40 s each" in blocks.build(run, conclude(run)).timing
    run.ends[1]["children"] = 1
    assert not [line for line in blocks.build(run, conclude(run)).timing if "processes" in line]


@pytest.mark.parametrize("count", [0, blocks.MESSAGES, blocks.MESSAGES + 7])
def test_a_few_messages_of_the_driver_stand_beside_a_finding_and_the_others_are_counted(count: int) -> None:
    said = [f"NVRM: Xid {number}" for number in range(count)]
    lines = [
        text for text, label in blocks.finding_lines(Finding("t", True, [0], [], [], driver=said)) if label == "driver"
    ]
    more = ["7 more messages, in the JSON report"] if count > blocks.MESSAGES else []
    assert lines == said[: blocks.MESSAGES] + more
