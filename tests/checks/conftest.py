"""Kernels of the checks run in Triton's interpreter: the variable must be set before anything imports Triton."""

from __future__ import annotations

import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Triton on the CPU; tests that need it are skipped visibly where Triton is not installed."""
    pytest.importorskip("triton")
    from gpucheck import interpreter

    interpreter.install()
