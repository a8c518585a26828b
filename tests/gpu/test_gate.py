"""Runs on machines with NVIDIA GPUs; elsewhere the skip says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.launch.environment import gpu_names

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_names(), reason="no NVIDIA GPU here")]

OWN = "attention,softmax,weighted_matmul,selection_attention,paged_attention"
CHECKS = f"{OWN},topk,swiglu,mxfp"  # no known library fault touches these
DEADLINE = 280.0  # s


def test_gate_passes_on_every_gpu(tmp_path: Path) -> None:
    ranks = len(gpu_names())
    command = [sys.executable, "-m", "gpucheck", "run", "gate", "--nproc", str(ranks), "--checks", CHECKS]
    finished = subprocess.run(
        [*command, "--out", str(tmp_path / "run"), "--json", str(tmp_path / "report.json")],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {result["rank"] for result in report["results"]} == set(range(ranks))
    launched = [
        launch
        for path in (tmp_path / "run" / "records").glob("*.jsonl")
        for line in path.read_text().splitlines()
        for launch in json.loads(line).get("launches", [])
    ]
    assert launched and all(launch["argument_devices"] == [f"cuda:{launch['device']}"] for launch in launched)
