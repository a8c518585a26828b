from __future__ import annotations

import json
import math

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Outcome
from gpucheck.report import blocks
from gpucheck.report.blocks import Report
from gpucheck.report.formats.json import document, render
from tests.conftest import Synthetic


def test_json_is_strict_and_whole(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=2)
    odd = synthetic.mismatch(expected=-math.inf, got=None, bound=math.nan)
    bad = synthetic.record(plan, 1, 1, Outcome.MISMATCH, mismatches=[odd], tightness=math.inf, seconds={"judge": 0.5})
    run = synthetic.run(plan, {(1, 1): bad})

    def refuse(token: str) -> None:
        raise AssertionError(token)

    item = json.loads(render(blocks.build(run, conclude(run))), parse_constant=refuse)
    assert (item["schema"], item["verdict"], item["ranks"], item["folder"]) == (2, "FAIL", [0, 1], "runs/x")
    assert [(r["case"], r["rank"], r["outcome"]) for r in item["results"]] == [
        ("matmul/0/exact", 0, "pass"),
        ("matmul/0/exact", 1, "pass"),
        ("matmul/1/exact", 0, "pass"),
        ("matmul/1/exact", 1, "mismatch"),
    ]
    mismatch = item["results"][3]["mismatches"][0]
    assert (mismatch["expected"], mismatch["got"], mismatch["bound"]) == ("-inf", None, "nan")
    assert item["rows"][1] == {"row": "matmul row1", "cases": 1, "ranks": [{"pass": 1}, {"mismatch": 1}]}
    assert item["findings"][0]["ranks"] == [1] and item["findings"][0]["cases"][0]["replay"]
    assert item["plan"]["scenario"] == "smoke" and "steps" not in item["plan"]


def test_lost_records_are_in_the_json(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=1, ranks=2), {(0, 1): Outcome.LOST})
    item = document(blocks.build(run, conclude(run)))
    assert [result["outcome"] for result in item["results"]] == ["pass", "lost"]
    assert item["verdict"] == "INCONCLUSIVE"


def test_the_text_is_the_document(busy: Report, hostile: Report) -> None:
    for report in (busy, hostile):
        assert json.loads(render(report)) == document(report)


def test_rows_of_numbers_take_a_line_each(busy: Report) -> None:
    lines = render(busy).splitlines()
    assert ' "ranks": [0, 1, 2, 3, 4, 5, 6, 7],' in lines
    assert max(map(len, lines)) < 1000 and len(lines) < 40_000


def test_maps_and_expected_failures_are_told(busy: Report) -> None:
    results = document(busy)["results"]
    maps = [mismatch["heat"] for result in results for mismatch in result["mismatches"] if mismatch["heat"]]
    assert maps and all(heat["shape"] == [1024, 5760] and len(heat["per_mille"]) == 32 for heat in maps)
    expected = [(result["case"], result["rank"]) for result in results if result["expected"]]
    assert expected == [(busy.plan.steps[23].case.id, rank) for rank in (1, 2, 3, 5, 6, 7)]
