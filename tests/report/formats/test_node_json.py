"""The node verdict as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.node_verdict import node_verdict
from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import Run
from gpucheck.report import blocks
from gpucheck.report.formats.node_json import render, schema, without_run
from tests.conftest import Synthetic


def written(run: Run) -> dict[str, Any]:
    conclusion = conclude(run)
    item = json.loads(render(blocks.build(run, conclusion), node_verdict(run, conclusion)))
    assert render(blocks.build(run, conclusion), node_verdict(run, conclusion)) == json.dumps(item, indent=1) + "\n"
    fits(item)
    return dict(item)


def fits(item: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(item, schema())


def test_each_gpu_has_its_verdict_and_the_node_that_of_the_worst(synthetic: Synthetic) -> None:
    plan = synthetic.plan(ranks=2, created=1764000000.0)
    gpus = [{"gpu": f"GPU-{rank}", "bus": f"0000:{rank}B:00.0", "host": "n7"} for rank in range(2)]
    run = synthetic.run(plan, {(0, 0): gpus[0], (0, 1): {**gpus[1], "outcome": Outcome.MISMATCH}}, seconds=8.0)
    run.starts = {rank: {"host": "n7"} for rank in range(2)}
    item = written(run)
    assert item["verdict"] == "CRITICAL" and item["reason"].startswith("rank 1: ")
    assert item["checked"] == "2025-11-24T16:00:08Z"
    first, second = item["gpus"]
    assert first == {
        "rank": 0,
        "host": "n7",
        "gpu": "GPU-0",
        "bus": "0000:0B:00.0",
        "name": "NVIDIA H200",
        "verdict": "PASS",
        "blames": "",
        "reason": "every case was right",
        "fix": "",
        "further": [],
    }
    assert (second["verdict"], second["gpu"], second["bus"]) == ("CRITICAL", "GPU-1", "0000:1B:00.0")
    assert item["condition"]["type"] == "GpuProblem" and item["condition"]["status"] == "True"
    assert item["condition"]["message"].startswith("CRITICAL: rank 1: ")


@pytest.mark.parametrize(
    ("outcome", "said", "state", "status", "reason"),
    [
        (Outcome.PASS, [], "PASS", "False", "GpusFit"),
        (Outcome.PASS, [{"rank": 0, "kind": "corrected", "text": "t"}], "WARNING", "False", "GpusFit"),
        (Outcome.LOST, [], "UNKNOWN", "Unknown", "NoVerdict"),
        (Outcome.MISMATCH, [], "CRITICAL", "True", None),
        (Outcome.PASS, [{"rank": 0, "kind": "xid of the GPU", "text": "t"}], "CRITICAL", "True", "GpuFaulty"),
    ],
)
def test_the_condition_says_the_same(
    synthetic: Synthetic, outcome: Outcome, said: list[Any], state: str, status: str, reason: str | None
) -> None:
    run = synthetic.run(synthetic.plan(), {(0, 0): outcome})
    run.driver = said
    item = written(run)
    assert (item["verdict"], item["condition"]["status"]) == (state, status)
    assert reason is None or item["condition"]["reason"] == reason


def test_text_of_others_cannot_break_out_of_a_line(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan())
    run.driver = [{"rank": 0, "kind": "uncorrected", "text": "a\nb\x1b[31m" + "c" * 5000}]
    item = written(run)
    assert item["gpus"][0]["reason"].startswith("a b\\x1b[31m") and len(item["condition"]["message"]) == 1024


def test_without_a_run_it_is_unknown_and_says_why() -> None:
    item = json.loads(without_run("no GPU can be used", 0.0))
    fits(item)
    assert (item["verdict"], item["reason"], item["gpus"]) == ("UNKNOWN", "no GPU can be used", [])
    assert item["condition"]["status"] == "Unknown" and item["checked"] == "1970-01-01T00:00:00Z"
