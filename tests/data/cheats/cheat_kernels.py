"""Kernels that the cheating candidates for ``problems/gelu.py`` launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit
def gelu_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < count, other=0.0)
    tl.store(y_ptr + place, 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)), mask=place < count)


def gelu(x: Tensor) -> Tensor:
    """What an honest candidate does."""
    y = torch.empty_like(x)
    gelu_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, y, x.numel(), BLOCK=BLOCK)
    return y
