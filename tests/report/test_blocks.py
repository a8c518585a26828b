from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import ExpectedFailure
from gpucheck.model.record import Outcome
from gpucheck.report import blocks
from gpucheck.report.blocks import Cell

if TYPE_CHECKING:
    from tests.conftest import Synthetic


def test_json_is_strict_and_whole(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=2)
    odd = synthetic.mismatch(expected=-math.inf, got=None, bound=math.nan)
    bad = synthetic.record(plan, 1, 1, Outcome.MISMATCH, mismatches=[odd], tightness=math.inf, seconds={"judge": 0.5})
    run = synthetic.run(plan, {(1, 1): bad})

    def refuse(token: str) -> None:
        raise AssertionError(token)

    text = json.dumps(blocks.to_json(run, blocks.build(run, conclude(run))), allow_nan=False)
    item = json.loads(text, parse_constant=refuse)
    assert (item["schema"], item["verdict"], item["ranks"], item["folder"]) == (1, "FAIL", [0, 1], "runs/x")
    assert [(r["case"], r["rank"], r["outcome"]) for r in item["results"]] == [
        ("matmul/0/exact", 0, "pass"),
        ("matmul/0/exact", 1, "pass"),
        ("matmul/1/exact", 0, "pass"),
        ("matmul/1/exact", 1, "mismatch"),
    ]
    mismatch = item["results"][3]["mismatches"][0]
    assert (mismatch["expected"], mismatch["got"], mismatch["bound"]) == ("-inf", None, "nan")
    assert item["rows"][1] == {"row": "matmul row1", "cases": 1, "ranks": [{"pass": 1}, {"mismatch": 1}]}
    assert item["findings"][0]["ranks"] == [1] and item["findings"][0]["sightings"][0]["replay"]
    assert item["plan"]["scenario"] == "smoke" and "steps" not in item["plan"]


def test_lost_records_are_in_the_json(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=1, ranks=2), {(0, 1): Outcome.LOST})
    item = blocks.to_json(run, blocks.build(run, conclude(run)))
    assert [result["outcome"] for result in item["results"]] == ["pass", "lost"]
    assert item["verdict"] == "INCONCLUSIVE"


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.PASS, Outcome.INAPPLICABLE}))
def test_a_cell_never_looks_better_than_its_worst_case(outcome: Outcome) -> None:
    assert Cell({"pass": 100, outcome.value: 1, "inapplicable": 3}).worst is outcome


def test_a_cell_of_expected_failures_only_has_no_worst_case() -> None:
    assert Cell({}, expected=2).worst is None
    assert Cell({"mismatch": 1}, expected=2).worst is Outcome.MISMATCH


def test_expected_failures_are_counted_apart(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2)
    stressed = Conditions("peer", late=True, repeat=3)
    step = replace(plan.steps[0], expect=ExpectedFailure(ranks="others"), conditions=stressed)
    run = synthetic.run(replace(plan, steps=(step,)), {(0, 1): Outcome.MISMATCH})
    item = blocks.to_json(run, blocks.build(run, conclude(run)))
    assert item["verdict"] == "PASS" and item["rows"] == [
        {"row": "matmul row0 (peer, late, x3)", "cases": 1, "ranks": [{"pass": 1}, {"failed as expected": 1}]}
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
    records = {(s, r): synthetic.record(plan, s, r, seconds=seconds) for s in range(2) for r in range(2)}
    run = synthetic.run(plan, records)
    run.starts = {0: {"import_seconds": 2.0}, 1: {"import_seconds": 1.5}}
    report = blocks.build(run, conclude(run))
    assert report.stages["compile"] == 2.0 and report.stages["judge"] == 0.5
    assert report.timing[0] == "wall 12.5 s = import 2.0 + compile 2.0 + launches 1.0 + harness 7.5"
    assert "compile 2.0 s, launch 1.0 s, judge 0.5 s" in report.timing[1]


def test_without_times_no_time_is_shown(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan())
    assert blocks.build(run, conclude(run)).timing == []
