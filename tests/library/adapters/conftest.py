"""Loads a real copy of the library into this process and runs its kernels in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import pytest

from gpucheck.library.adapters import load
from gpucheck.library.adapters.base import Adapter, Routing
from gpucheck.library.library_option import LibraryCopy, parse_source, resolve
from gpucheck.model.errors import InfrastructureError
from gpucheck.triton_hooks import interpreter

if TYPE_CHECKING:
    import torch

if importlib.util.find_spec("triton"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    major, minor = os.environ.get("GPUCHECK_TEST_CAPABILITY", "8.0").split(".")  # 9.0 tests Hopper's layouts
    interpreter.install(capability=(int(major), int(minor)))


@pytest.fixture(scope="session")
def library_copy() -> LibraryCopy:
    """The folder in GPUCHECK_TEST_LIBRARY, else what a run without options would test."""
    folder = os.environ.get("GPUCHECK_TEST_LIBRARY")
    if folder:
        return resolve(parse_source(f"path:{folder}"))
    try:
        return resolve(None)
    except InfrastructureError as error:
        pytest.skip(f"no library to test, set GPUCHECK_TEST_LIBRARY: {error}")


@pytest.fixture(scope="session")
def adapter(library_copy: LibraryCopy) -> Adapter:
    """The adapter to :func:`library_copy`."""
    pytest.importorskip("triton", reason="needs triton")
    return load(library_copy.root, library_copy.generation)


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of the 4-bit codes 0 to 7; 8 to 15 are the same, negative."""


def decode_mxfp4(codes: torch.Tensor, scales: torch.Tensor, axis: int = -2) -> torch.Tensor:
    """fp64 values of two codes a byte, the lower one first along the axis, times those of their blocks' scales."""
    import torch

    table = torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.float64)
    pairs = torch.stack([table[(codes & 15).long()], table[(codes >> 4).long()]], dim=axis % codes.ndim + 1)
    values = pairs.flatten(axis % codes.ndim, axis % codes.ndim + 1)
    return values * block_factors(scales, values.shape[axis], axis)


def block_factors(scales: torch.Tensor, length: int, axis: int) -> torch.Tensor:
    """The powers of two that scale bytes stand for, one for each of 32 values along the axis."""
    import torch

    return torch.pow(2.0, scales.double() - 127).repeat_interleave(32, axis).narrow(axis, 0, length)


def route_by(experts: torch.Tensor, count: int) -> Routing:
    """Routing of (T, k) expert ids whose rows ascend, with gates of 1."""
    import torch

    flat = experts.flatten()
    to_flat = torch.argsort(flat, stable=True).to(torch.int32)
    to_sorted = torch.empty_like(to_flat)
    to_sorted[to_flat.long()] = torch.arange(flat.numel(), dtype=torch.int32)
    histogram = torch.bincount(flat, minlength=count).to(torch.int32)
    return Routing(histogram, to_flat, to_sorted, torch.ones(flat.numel()), count, experts.shape[1])
