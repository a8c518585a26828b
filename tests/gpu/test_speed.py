"""Speed on real GPUs: times that make sense, and a rank that is slowed down on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.conftest import DEADLINE, GPUS, LIBRARY, NEEDS_GPU

pytestmark = NEEDS_GPU

SLOW_RANK = Path(__file__).parents[1] / "data" / "slow-rank.patch"
SCENARIO = """
[[cases]]
check = "matmul"
data = "exact"
m = [256, 4096]
n = 4096
k = 4096
[[cases]]
check = "topk"
m = [300, 4096]
experts = 128
[[cases]]
check = "swiglu"
m = [1024, 4096]
n = 5760
[[cases]]
check = "attention"
data = "exact"
q_heads = 16
q_len = 1024
k_len = 1024
"""


def run(folder: Path, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report of a run that passes, and its records."""
    (folder / "speed.toml").write_text(SCENARIO)
    command = [sys.executable, "-m", "gpucheck", "run", str(folder / "speed.toml"), *options]
    command += ["--library", LIBRARY] if LIBRARY else []
    finished = subprocess.run(
        [*command, "--out", str(folder / "run"), "--json", str(folder / "report.json")],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    lines = [line for path in (folder / "run" / "records").glob("*.jsonl") for line in path.read_text().splitlines()]
    records = [item for item in map(json.loads, lines) if item["event"] == "result"]
    return json.loads((folder / "report.json").read_text()), records


def test_every_case_is_timed_and_none_of_that_counts_as_launched(tmp_path: Path) -> None:
    report, records = run(tmp_path)
    assert len(records) == len(report["results"]) and all(1e-6 < item["timings"]["call"] < 0.1 for item in records)
    assert not report["speed"]["paces"] and all("plain" not in item["timings"] for item in records)
    attention = [launch for item in records if item["case"].startswith("attention") for launch in item["launches"]]
    assert {launch["count"] for launch in attention} == {2}


def test_bench_compares_with_torch_and_with_what_the_gpu_can_do(tmp_path: Path) -> None:
    report, _ = run(tmp_path, "--bench")
    assert [each["rank"] for each in report["speed"]["ceilings"]] == list(range(len(GPUS)))
    paces = report["speed"]["paces"]
    assert {pace["rank"] for pace in paces} == set(range(len(GPUS)))
    for pace in paces:
        assert 0 < pace["share"] < 1.5 and pace["bytes"] > 0, pace
        assert (pace["torch"] is None) is (pace["row"] == "topk"), pace
    products = [pace for pace in paces if pace["row"] == "matmul dense bf16"]
    assert all(pace["flops"] > 0.1 * report["speed"]["ceilings"][pace["rank"]]["flops"] for pace in products)


@pytest.mark.skipif(len(GPUS) < 2, reason="needs two GPUs")
def test_a_rank_that_is_slowed_down_is_warned_of(tmp_path: Path) -> None:
    report, _ = run(tmp_path, "--patch", str(SLOW_RANK), "--checks", "matmul,topk,swiglu")
    (finding,) = report["findings"]
    assert report["verdict"] == "PASS" and finding["warns"]
    assert (finding["cause"], finding["ranks"]) == ("straggler", [1])
