"""Runs the tests of this folder for each pair of library content and Triton release that lies on this machine.

A process holds one copy of the library and one Triton, so each pair gets a process of its own.
``GPUCHECK_TEST_CONTENTS`` names a folder with a folder for each content, ``A`` to ``F``, that holds
``triton_kernels``; ``GPUCHECK_TEST_TRITONS`` a folder with a folder for each Triton, ``t3.6.0`` for example, as
``pip install --no-deps --target`` makes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
DEADLINE = 240.0  # seconds
PAIRS = [
    ("A", "t3.4.0", "8.0"),
    ("B", "t3.5.1", "8.0"),
    ("B", "t3.6.0", "8.0"),
    ("B", "t3.9.0", "8.0"),
    ("C", "t3.6.0", "8.0"),
    ("C", "t3.6.0", "9.0"),
    ("D", "t3.6.0", "8.0"),
    ("D", "t3.7.1", "8.0"),
    ("D", "t3.7.1", "9.0"),
    ("E", "t3.8.0", "8.0"),
    ("E", "t3.9.0", "9.0"),
    ("F", "t3.8.0", "8.0"),
    ("F", "t3.8.0", "9.0"),
]  # content, Triton, compute capability the stand-in device reports


def folder(variable: str, name: str) -> Path:
    base = os.environ.get(variable)
    if base is None:
        pytest.skip(f"{variable} is not set")
    path = Path(base) / name
    if not path.is_dir():
        pytest.skip(f"{path} does not exist")
    return path


@pytest.mark.parametrize(("content", "triton", "capability"), PAIRS)
def test_pair(content: str, triton: str, capability: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "GPUCHECK_TEST_CAPABILITY": capability,
        "GPUCHECK_TEST_LIBRARY": str(folder("GPUCHECK_TEST_CONTENTS", content)),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(folder("GPUCHECK_TEST_TRITONS", triton))]),
    }
    here = Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(here.parent)]
    result = subprocess.run(
        [*command, f"--ignore={here}", f"--basetemp={tmp_path / 'temporary'}"],
        env=environment,
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        timeout=DEADLINE,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
