"""The table of ``--bench``: its numbers from hand-made records, and the table in every format that shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.record import Ceilings, Cost, Outcome
from gpucheck.records.run_folder import Run, read_run
from gpucheck.report import blocks, formats
from gpucheck.report.formats import markdown, termination
from gpucheck.report.formats.json_schema import report_schema
from gpucheck.report.formats.text import plain
from gpucheck.report.timings import Pace, RankCeilings, Speed
from tests.conftest import Synthetic

BEST = Ceilings(flops=1e15, bytes=1e12)


def benched(synthetic: Synthetic, **changes: Any) -> Run:
    """Two rows of one case each on two ranks: 2 ms at 1e12 flops and 1e9 bytes; rank 1 takes twice as long."""
    plan = replace(synthetic.plan(cases=2, ranks=2), bench=True)
    records = {
        (step, rank): synthetic.record(
            plan,
            step,
            rank,
            timings={"call": 2e-3 * (rank + 1), "plain": 6e-3},
            cost=Cost(1e12, 1e9),
            ceilings=BEST if step == 0 else None,
        )
        for step in range(2)
        for rank in range(2)
    }
    return replace_all(synthetic.run(plan, records), **changes)


def replace_all(run: Run, **changes: Any) -> Run:
    run.records = {key: replace(record, **changes) for key, record in run.records.items()}
    return run


def report_of(run: Run) -> blocks.Report:
    return blocks.build(run, conclude(run))


def pace(**changes: Any) -> Pace:
    known = Pace("matmul row0", 0, 1, 2e-3, 5e14, 5e11, 0.5, "memory", 3.0)
    return replace(known, **changes)


def test_numbers_by_row_and_rank(synthetic: Synthetic) -> None:
    speed = report_of(benched(synthetic)).speed
    slow = {"rank": 1, "seconds": 4e-3, "flops": 2.5e14, "bytes": 2.5e11, "share": 0.25, "torch": 1.5}
    assert speed.paces == [pace(), pace(**slow), pace(row="matmul row1"), pace(row="matmul row1", **slow)]
    assert speed.ceilings == [RankCeilings(0, 1e15, 1e12), RankCeilings(1, 1e15, 1e12)]


def test_the_ceiling_that_binds_is_the_one_that_is_told(synthetic: Synthetic) -> None:
    computing = report_of(benched(synthetic, cost=Cost(1.8e12, 1e9))).speed.paces[0]
    assert (computing.share, computing.binding) == (pytest.approx(0.9), "compute")
    moving = report_of(benched(synthetic, cost=Cost(0.0, 1e9))).speed.paces[0]
    assert (moving.flops, moving.share, moving.binding) == (None, pytest.approx(0.5), "memory")


def test_a_row_sums_its_cases(synthetic: Synthetic) -> None:
    run = benched(synthetic)
    step = run.plan.steps[1]
    run.plan = replace(run.plan, steps=(run.plan.steps[0], replace(step, case=replace(step.case, row="matmul row0"))))
    run.records[(1, 0)] = replace(run.records[(1, 0)], timings={"call": 8e-3}, cost=Cost(3e12, 0.0))
    first = report_of(run).speed.paces[0]
    assert (first.cases, first.seconds) == (2, pytest.approx(1e-2))
    assert first.flops == pytest.approx(4e14) and first.bytes == pytest.approx(1e11)
    assert first.share == pytest.approx((1e-3 + 3e-3) / 1e-2) and first.binding == "compute"
    assert first.torch == pytest.approx(3.0), "of the cases that have both times"


def test_what_is_not_known_is_left_open(synthetic: Synthetic) -> None:
    bare = report_of(benched(synthetic, timings={"call": 2e-3}, cost=None, ceilings=None)).speed
    assert bare.paces[0] == pace(flops=None, bytes=None, share=None, binding="", torch=None) and not bare.ceilings
    assert "matmul row0     0      1  2 ms        –     –           –      –" in plain(
        report_of(benched(synthetic, timings={"call": 2e-3}, cost=None, ceilings=None))
    )


def test_only_right_and_timed_cases_count_and_only_where_asked_for(synthetic: Synthetic) -> None:
    run = benched(synthetic)
    run.records[(0, 0)] = replace(run.records[(0, 0)], outcome=Outcome.MISMATCH)
    run.records[(0, 1)] = replace(run.records[(0, 1)], timings={})
    assert [each.row for each in report_of(run).speed.paces] == ["matmul row1"] * 2
    run.plan = replace(run.plan, bench=False)
    assert report_of(run).speed == Speed() and "GB/s" not in plain(report_of(run))


def test_the_table_on_a_terminal(synthetic: Synthetic) -> None:
    text = plain(report_of(benched(synthetic))).splitlines()
    start = text.index("check        rank  cases  time  TFLOP/s  GB/s  of ceiling  torch")
    assert text[start + 1 : start + 5] == [
        "matmul row0     0      1  2 ms      500   500  50% memory  3.00x",
        "                1      1  4 ms      250   250  25% memory  1.50x",
        "matmul row1     0      1  2 ms      500   500  50% memory  3.00x",
        "                1      1  4 ms      250   250  25% memory  1.50x",
    ]
    assert "ceilings of rank 1: 1000 TFLOP/s in a large bf16 product, 1000 GB/s in a large copy" in text


def test_the_table_in_files(synthetic: Synthetic) -> None:
    report = report_of(benched(synthetic))
    item = json.loads(formats.render(report, ".json"))
    jsonschema.validate(item, report_schema())
    assert item["speed"]["paces"][1]["torch"] == 1.5 and item["speed"]["ceilings"][0]["flops"] == 1e15
    assert item["results"][0]["timings"] == {"call": 2e-3, "plain": 6e-3}
    assert item["results"][0]["cost"] == {"flops": 1e12, "bytes": 1e9}
    text = formats.render(report, ".md")
    assert "| matmul row0 | 1 | 1 | 4 ms | 250 | 250 | 25% memory | 1\\.50x |" in text
    assert text.count("<details>") == text.count("</details>") == 1
    page = formats.render(report, ".html")
    assert '<section id="speed"><h2>Speed</h2>' in page and "<td>25% memory</td><td>1.50x</td>" in page
    bare = report_of(replace_all(benched(synthetic), timings={}))
    assert "Speed" not in formats.render(bare, ".md") and 'id="speed"' not in formats.render(bare, ".html")


def test_a_step_summary_has_no_room_for_every_table(synthetic: Synthetic) -> None:
    report = report_of(benched(synthetic))
    whole = markdown.render(report)
    text = markdown.render(report, len(whole.encode()) // 2)
    assert 'The table "Speed" is left out here' in text and len(text.encode()) <= len(whole.encode()) // 2
    assert markdown.render(report, 2 * len(whole.encode())) == whole


def straggling(synthetic: Synthetic) -> Run:
    plan = synthetic.plan(cases=4, ranks=2)
    records = {
        (step, rank): synthetic.record(plan, step, rank, timings={"call": 1e-3 * (rank + 1)})
        for step in range(4)
        for rank in range(2)
    }
    run: Run = synthetic.run(plan, records)
    return run


def test_a_warning_is_called_one_everywhere_and_turns_nothing_red(synthetic: Synthetic) -> None:
    report = report_of(straggling(synthetic))
    title = "warning: straggler: 2.00 times as slow as its peers"
    assert (report.verdict, report.summary) == ("PASS", "4 cases on 2 ranks, 1 warning")
    assert f"1  {title}   rank 1" in plain(report) and f"<b>{title}</b>" in formats.render(report, ".md")
    assert "   explain gpucheck explain 'straggler'" in plain(report)
    assert f"first: {title} on rank 1" in termination.render(report)
    assert f"</span>{title}</h3>" in formats.render(report, ".html")
    root = ElementTree.fromstring(formats.render(report, ".xml"))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("8", "0", "0")
    shown = [out.text or "" for out in root.iter("system-out")]
    assert len(shown) == 4 and all(text.startswith(f"{title}, rank 1\n2 ms a call") for text in shown)
    gauges = formats.render(report, ".prom")
    assert 'gpucheck_warnings{scenario="smoke"} 1\n' in gauges
    assert 'gpucheck_findings{scenario="smoke",fails="false"} 0\n' in gauges
    assert json.loads(formats.render(report, ".json"))["findings"][0]["warns"] is True


def test_speed_comes_back_from_a_run_folder(synthetic: Synthetic, tmp_path: Path) -> None:
    run = benched(synthetic)
    again = read_run(synthetic.write(tmp_path / "run", run))
    assert again.records == run.records and again.plan == run.plan
    assert report_of(again).speed == report_of(run).speed


def test_what_ranks_do_together_is_told_of_the_largest_case_alone(synthetic: Synthetic) -> None:
    """Small cases say how long a message takes, not how much a link carries."""
    plan = replace(
        synthetic.plan(cases=2, ranks=2, under=[Conditions(process_group=TOGETHER)], one_row=True), bench=True
    )
    sizes = {0: Cost(0.0, 4e3), 1: Cost(0.0, 3e8)}
    records = {
        (step, rank): synthetic.record(plan, step, rank, timings={"call": 1e-3}, cost=cost)
        for step, cost in sizes.items()
        for rank in (0, 1)
    }
    report = report_of(synthetic.run(plan, records))
    assert [(pace.rank, pace.cases, pace.bytes, pace.joint) for pace in report.speed.paces] == [
        (0, 1, pytest.approx(3e11), True),
        (1, 1, pytest.approx(3e11), True),
    ]
    text = plain(report)
    assert "bandwidth of the bus as NCCL's tests count it" in text and "GPU time of one call" not in text
    assert " 300 " in text and "which says nothing about GPUs" not in text
