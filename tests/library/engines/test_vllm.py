"""vLLM's expert block through each of its entries, by a released vLLM in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.library.engines.base import HELD
from gpucheck.library.engines.engine_fetch import fetch_engine
from gpucheck.model.errors import InfrastructureError

SCRIPT = Path(__file__).with_name("vllm_depths.py")


def test_every_entry_computes_the_block_and_says_why_it_is_no_deeper() -> None:
    for package in ("torch", "triton", "remotezip"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    try:
        copy = fetch_engine("vllm", "0.33.0")
    except InfrastructureError as error:
        pytest.skip(f"vllm 0.33.0 cannot be fetched: {str(error).splitlines()[0]}")
    command = [sys.executable, str(SCRIPT), json.dumps(copy.planned()), str(copy.root / "vllm/third_party")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert list(told) == ["module", "method", "functions"]
    assert [entry["wrong"] for entry in told.values()] == [[], [], []]
    assert all(sorted(entry["placed"]) == sorted(HELD.values()) for entry in told.values())
    assert [len(entry["lacking"]) for entry in told.values()] == [0, 1, 2]
    assert all("(4, 384, 24)" in str(entry["layouts"]) for entry in told.values()), "scales padded from 10 groups to 12"
