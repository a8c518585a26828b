"""Runs the kernels of these tests in Triton's interpreter."""

from __future__ import annotations

import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
pytest.importorskip("triton", reason="needs triton")

from gpucheck import interpreter

interpreter.install()
