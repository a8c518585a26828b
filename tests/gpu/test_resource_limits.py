"""A kernel too large for the GPU here is refused before it is loaded, and the GPU still works afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.gpu.conftest import NEEDS_GPU
from tests.tools.compile.conftest import shipped

pytestmark = NEEDS_GPU

SCRIPT = """
import torch
from gpucheck.triton_hooks import resource_limits
from gpucheck.triton_hooks.resource_limits import ResourceLimit
from tests.tools.compile.planted import hungry, sound

resource_limits.install()
x = torch.zeros(1 << 20, dtype=torch.bfloat16, device="cuda")
try:
    hungry[(1,)](x, x, x, 128, 128, 512, 4, num_warps=16, num_stages=4)
except ResourceLimit as error:
    print(error)
y = torch.zeros(64, device="cuda")
sound[(1,)](y, L=64)
print(y.sum().item())
"""


def test_an_impossible_kernel_is_an_error_with_its_configuration(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=shipped(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    words, total = done.stdout.splitlines()
    assert words.startswith("hungry needs ") and "bytes of shared memory, a block may use" in words
    assert "M=128, N=128, K=512, 16 warps, 4 stages" in words and total == "64.0"
