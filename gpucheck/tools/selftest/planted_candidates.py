"""A problem for candidates, an honest one, and what those that cheat share with it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

BLOCK = 128


class Model(nn.Module):
    """The square of each value, plus what is positive of another, which as a problem draws it is all of it."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * x + torch.relu(gate)


def get_inputs() -> list[Tensor]:
    return [torch.randn(12, 40), torch.rand(12, 40)]


def get_init_inputs() -> list[object]:
    return []


@triton.jit
def square_kernel(x_ptr, gate_ptr, y_ptr, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < count, other=0.0)
    gate = tl.load(gate_ptr + place, mask=place < count, other=0.0)
    tl.store(y_ptr + place, x * x + tl.maximum(gate, 0.0), mask=place < count)


def square(x: Tensor, gate: Tensor, y: Tensor | None = None) -> Tensor:
    """The answer, by a kernel."""
    y = torch.empty_like(x) if y is None else y
    square_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, gate, y, x.numel(), BLOCK=BLOCK)
    return y


class Honest(nn.Module):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return square(x, gate)
