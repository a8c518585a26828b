"""The self-test and the canary with real runs: they pass with a detector that sees, and fail with a blind one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import REPOSITORY, Lab
from tests.processes import naming, wait_until

FEW = "bit-7,killed"
LIMIT = 280.0  # s for a self-test of a few faults on a busy machine
SEES = "if bool(compared(output, reference, estimate, piece)[0].any()):\n"
SCENARIO = """
title = "one product"
canary = true
[[cases]]
check = "matmul"
data = "exact"
m = 20
n = 40
k = 32
"""


def command(
    lab: Lab, *arguments: str, gpucheck: Path = REPOSITORY, nproc: int = 1, library: str = ""
) -> subprocess.Popen[str]:
    """Starts ``gpucheck`` in a folder that holds the package."""
    environment = {**os.environ, "PYTHONPATH": str(gpucheck)}
    words = [sys.executable, "-m", "gpucheck", *arguments, "--device", "cpu", "--nproc", str(nproc)]
    words += ["--library", library or f"path:{lab.library.package}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=gpucheck, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        text, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return process.returncode, text


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gpucheck whose comparator finds every output right."""
    folder = tmp_path_factory.mktemp("blind")
    shutil.copytree(REPOSITORY / "gpucheck", folder / "gpucheck", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "scenarios", folder / "scenarios")
    judge = folder / "gpucheck" / "verify" / "judge.py"
    text = judge.read_text()
    assert text.count(SEES) == 1
    judge.write_text(text.replace(SEES, "if False:\n"))
    return folder


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(SCENARIO)
    return tmp_path / "mine.toml"


def test_a_fault_is_found_on_each_rank_as_planted(lab: Lab, tmp_path: Path) -> None:
    arguments = [
        "selftest",
        "--faults",
        "bit-7",
        "--out",
        str(tmp_path / "runs"),
        "--json",
        str(tmp_path / "found.json"),
    ]
    code, text = finished(command(lab, *arguments, nproc=2))
    assert code == 0, text
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert found["detected"] == found["attributed"] == found["planted"] == 2
    assert found["false_alarms"] == [] and found["clean"] > 50
    assert ["bit-7", "ok", "ok", "."] in rows(text)
    assert f"triton_kernels B ({lab.library.content[:8]})" in text


def test_a_blind_detector_fails_the_self_test(lab: Lab, blind: Path, tmp_path: Path) -> None:
    arguments = ["selftest", "--faults", FEW, "--out", str(tmp_path / "runs")]
    code, text = finished(command(lab, *arguments, gpucheck=blind))
    assert code == 1, text
    assert ["bit-7", "no", "."] in rows(text) and ["killed", "ok", "."] in rows(text)
    assert "detection     1 of 2 (50.0%)" in text
    assert "wrong: bit-7 on rank 0: rank 0: pass, expected mismatch" in text


def test_a_blind_detector_cannot_give_a_green_gate(lab: Lab, blind: Path, scenario: Path, tmp_path: Path) -> None:
    arguments = ["run", str(scenario), "--out", str(tmp_path / "run")]
    code, text = finished(command(lab, *arguments, gpucheck=blind))
    assert code == 3, text
    assert "INCONCLUSIVE" in text and "the canary was not caught" in text
    assert "canary: not caught on rank 0" in text and "the detector is blind" in text


def test_the_canary_is_caught_and_is_no_failure(lab: Lab, scenario: Path, tmp_path: Path) -> None:
    code, text = finished(command(lab, "run", str(scenario), "--out", str(tmp_path / "run"), nproc=2))
    assert code == 0, text
    assert "canary: caught on ranks 0, 1" in text and "\nXX" not in text
    for rank in (0, 1):
        lines = (tmp_path / "run" / "records" / f"rank-0000{rank}.jsonl").read_text().splitlines()
        (bird,) = [item for item in map(json.loads, lines) if str(item.get("case", "")).startswith("canary/")]
        assert bird["outcome"] == "mismatch" and bird["mismatches"][0]["bits"] == [7]


def test_interrupted_it_tells_what_it_found_and_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    folder, sleeping = tmp_path / "runs", lab.plant(append=("matmul_ogs.py", "\n__import__('time').sleep(600)\n"))
    process = command(lab, "selftest", "--faults", "bit-7", "--out", str(folder), library=sleeping)
    wait_until(lambda: list(folder.glob("*/run/records/*.jsonl")))
    process.send_signal(signal.SIGINT)
    ended, text = finished(process)
    assert ended == 130, text
    assert "INCOMPLETE  self-test" in text and "0 of 2 runs" in text, "it did not wait for the end of a run"
    assert not naming(folder)
