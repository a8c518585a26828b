"""Kernels of the screen run in Triton's interpreter, with stand-in multiprocessors."""

from __future__ import annotations

import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton


@pytest.fixture(scope="module")
def launches() -> object:
    """The module that launches, once Triton interprets; only then may kernels be imported."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from gpucheck.triton_hooks import interpreter

    interpreter.install()
    from gpucheck.tools.screen import tile_launches

    return tile_launches
