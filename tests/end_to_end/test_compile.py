"""The real command with the real library: what it holds compiles, and two kernels planted in it are named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import DEADLINE, Lab, environment

CASE = "swiglu/bf16/m64-n5760/normal"
PLANT = """

import triton.language as tl


@triton.jit
def _broadcast(ptr, s, L: tl.constexpr, D: tl.constexpr):
    offs_L = tl.arange(0, L)
    offs_D = tl.arange(0, D)
    tl.store(ptr + offs_L * s + offs_D[None, :], 1.0)


@triton.jit
def _hungry(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, n):
    rows, columns, terms = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    top = tl.zeros([M], tl.float32)
    for i in range(n):
        x = tl.load(a + rows * 1024 + terms[None, :] + i * K)
        y = tl.load(b + terms[:, None] * 1024 + columns + i * K)
        total = tl.dot(x, y, total)
        top += tl.max(total, 1)
        total = total * top[:, None]
    tl.store(c + rows * 1024 + columns, total)


_alone = swiglu


def swiglu(a, alpha, precision_config, routing_data=None):
    out = _alone(a, alpha, precision_config, routing_data)
    _broadcast[(1,)](out, 7, L=128, D=64)
    _hungry[(1,)](a, a, out, 128, 128, 512, 4, num_warps=16, num_stages=4)
    return out
"""

Compile = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def gpucheck_compile(lab: Lab, tmp_path: Path) -> Compile:
    """Runs ``gpucheck compile`` on one case for sm_90, with kept results of this test alone."""
    cached = tmp_path / "cache"
    cached.mkdir()

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gpucheck", "compile", "--target", "sm_90", "--case", CASE, *options]
        hidden = {**environment(), "GPUCHECK_CACHE_DIR": str(cached)}
        return subprocess.run(command, env=hidden, capture_output=True, text=True, timeout=DEADLINE)

    return run


def test_the_library_compiles_and_is_not_compiled_again(gpucheck_compile: Compile, lab: Lab, tmp_path: Path) -> None:
    arguments = ("--library", f"path:{lab.library.root}", "--json", str(tmp_path / "report.json"))
    first = gpucheck_compile(*arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    (combination,) = report["combinations"]
    (kernel,) = combination["kernels"]
    assert kernel["name"] == "_swiglu" and kernel["registers"] > 0 and combination["compiled_now"] == 1
    again = gpucheck_compile(*arguments)
    assert again.returncode == 0 and "1 kernel, 0 compiled now" in again.stdout


def test_planted_kernels_are_named_with_their_lines(gpucheck_compile: Compile, lab: Lab) -> None:
    library = lab.plant(append=("swiglu.py", PLANT))
    done = gpucheck_compile("--library", library)
    assert done.returncode == 1, done.stdout + done.stderr
    planted = Path(library.removeprefix("path:"), "swiglu.py").read_text().splitlines()
    store = planted.index("    tl.store(ptr + offs_L * s + offs_D[None, :], 1.0)") + 1
    hungry = next(number for number, line in enumerate(planted, start=1) if line.startswith("def _hungry("))
    launch = next(number for number, line in enumerate(planted, start=1) if line.startswith("    _hungry["))
    text = done.stdout
    assert text.startswith("FAIL  2 findings")
    assert f"at triton_kernels/swiglu.py:{store}: tl.store(ptr + offs_L * s + offs_D[None, :], 1.0)" in text
    assert "incompatible dimensions at index 1: 128 and 64" in text and "write x[:, None]" in text
    assert f"at triton_kernels/swiglu.py:{hungry}: def _hungry(" in text
    assert "needs 1,049,600 bytes of shared memory, a block may use 232,448 on sm_90" in text
    assert f"launched at triton_kernels/swiglu.py:{launch}" in text
    assert "with M=128, N=128, K=512, 16 warps, 4 stages" in text
    again = next(line for line in text.splitlines() if line.startswith("   replay  gpucheck compile compile"))
    assert CASE in again and library in again
