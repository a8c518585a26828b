"""Runs ``library_behaviour.py`` for a pair of library content and Triton release, where both lie on this machine.

``GPUCHECK_TEST_CONTENTS`` names a folder with one folder for each content, ``A`` to ``E``, that holds
``triton_kernels``; ``GPUCHECK_TEST_TRITONS`` a folder with one folder for each Triton, ``t3.6.0`` for example, made by
``pip install --no-deps --target``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
DEADLINE = 600.0  # seconds


def run_behaviour(content: str, triton: str, capability: str = "8.0") -> None:
    """Fails the calling test where an adapter misbehaves; skips it where the pair is not here."""
    library = _folder("GPUCHECK_TEST_CONTENTS", content)
    path = os.pathsep.join([str(REPOSITORY), str(_folder("GPUCHECK_TEST_TRITONS", triton))])
    environment = {
        **os.environ,
        "GPUCHECK_TEST_CAPABILITY": capability,
        "GPUCHECK_TEST_LIBRARY": str(library),
        "PYTHONPATH": path,
        "TRITON_INTERPRET": "1",
    }
    environment.pop("PYTEST_ADDOPTS", None)
    module = Path(__file__).with_name("library_behaviour.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", str(module)]
    result = subprocess.run(command, env=environment, cwd=REPOSITORY, text=True, capture_output=True, timeout=DEADLINE)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def _folder(variable: str, name: str) -> Path:
    base = os.environ.get(variable)
    if base is None:
        pytest.skip(f"{variable} is not set")
    folder = Path(base) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return folder
