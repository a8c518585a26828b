"""Number formats numpy does not have: bfloat16, float8 and the microscaling formats, as bit patterns."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

Array = Any  # a numpy array; shapes and types are said where they matter

FLOAT8 = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def is_packed(name: str) -> bool:
    """Whether Triton's type of this name is kept as bit patterns in an integer array."""
    return name == "bf16" or name in FLOAT8


@cache
def _float8_values(name: str) -> Array:
    return torch.arange(256, dtype=torch.uint8).view(FLOAT8[name]).to(torch.float32).numpy()


def decode(bits: Array, name: str) -> Array:
    """Bit patterns of a packed type -> float32, exactly; arrays of other types come back unchanged."""
    if name == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if name in FLOAT8:
        return _float8_values(name)[bits]
    return bits


def encode(values: Array, name: str) -> Array:
    """Numbers -> bit patterns of a packed type, rounded to nearest even; float8 saturates as the GPU's cast does."""
    values = np.asarray(values).astype(np.float32, copy=False)
    if name == "bf16":
        bits = values.view(np.uint32)
        half_or_less = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        rounded = ((bits + half_or_less) >> np.uint32(16)).astype(np.uint16)
        nan = np.isnan(values)
        return np.where(nan, np.uint16(0x7FFF), rounded) if nan.any() else rounded
    limit = float(torch.finfo(FLOAT8[name]).max)
    clipped = torch.from_numpy(np.clip(values, -limit, limit))
    return clipped.to(FLOAT8[name]).view(torch.uint8).numpy()


def toward_zero(values: Array, bits: Array, name: str) -> Array:
    """Turns patterns rounded to nearest into patterns rounded toward zero."""
    with np.errstate(all="ignore"):
        return bits - (np.abs(decode(bits, name)) > np.abs(values)).astype(bits.dtype)


def unpack_e2m1(codes: Array, axis: int) -> Array:
    """uint8 pairs of 4-bit codes -> float32 with ``axis`` twice as long; the low nibble comes first."""
    codes = np.moveaxis(codes, axis, -1)
    pairs = np.stack([codes & np.uint8(0xF), codes >> np.uint8(4)], axis=-1)
    return np.moveaxis(E2M1[pairs].reshape(*codes.shape[:-1], 2 * codes.shape[-1]), -1, axis)


def decode_e8m0(scales: Array) -> Array:
    """Scale bytes -> float32 powers of two as the kernels decode them: 0 is 0.0, 255 is infinite."""
    return (scales.view(np.uint8).astype(np.uint32) << np.uint32(23)).view(np.float32)
