"""Normal numbers for noise: each drawn by itself, or, where billions are needed, taken from a stock of them.

A number of the generator takes as long as a hundred multiplications. From a stock, a tensor is filled window by window,
each from a place and with a sign drawn at random. The numbers within a window are independent, two windows are so
unless they overlap, and two tensors hold the same numbers at an element once in millions: what is measured element by
element over a few tensors, or over sums of their elements, is the same. On a GPU numbers are made in float32: errors
need no more digits, and memory is what takes time there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

STOCK = 1 << 22  # numbers, 32 MiB of float64 for a process
WINDOW = 1 << 14  # numbers that are neighbours in the stock too; a tensor takes two of them from one place rarely


class Normal:
    """A source of normal numbers."""

    def __init__(self, generator: torch.Generator, *, stocked: bool = False) -> None:
        """``stocked``: takes more than a few from the stock, at places of the generator's choice."""
        self._generator = generator
        self._stocked = stocked
        self._narrow = generator.device.type == "cuda"

    def disturbed(
        self, value: Tensor, scale: Tensor, deviation: float, *, in_place: bool = False, finite: bool = False
    ) -> Tensor:
        """Float64 values with errors of a standard deviation that is relative to a scale, maybe the values themselves.

        Args:
            scale: of a shape that broadcasts to that of the values.
            finite: all of them are known to be.
        """
        if self._narrow and finite:  # the sum of an infinity and its error may be none
            errors = torch.empty_like(value, dtype=torch.float32).normal_(generator=self._generator)
            scale, out = scale.to(value.device), value if in_place else None
            return torch.addcmul(value, scale, errors, value=deviation, out=out)
        if value is scale:
            errors = self.draw(value.shape, 1, deviation)
            return value.mul_(errors) if in_place else errors.mul_(value)
        errors = self.draw(value.shape, 0, deviation).mul_(scale)
        return value.add_(errors) if in_place else errors.add_(value)

    def draw(self, shape: Sequence[int], mean: float, deviation: float) -> Tensor:
        """Float64 numbers of a mean and a standard deviation."""
        if not self._stocked or math.prod(shape) < WINDOW:
            where = self._generator.device
            drawn = torch.empty(shape, dtype=torch.float64, device=where)
            return drawn.normal_(mean, deviation, generator=self._generator)
        drawn, middle = torch.empty(shape, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64)
        parts = drawn.view(-1).split(WINDOW)
        chosen = torch.randint(2 * (STOCK - WINDOW), (len(parts),), generator=self._generator).tolist()
        stock = _stock()
        for part, number in zip(parts, chosen, strict=True):
            place, sign = divmod(number, 2)
            window = stock.narrow(0, place, part.numel())
            torch.add(middle, window, alpha=deviation if sign else -deviation, out=part)
        return drawn


@cache
def _stock() -> Tensor:
    numbers = torch.randn(STOCK, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return numbers.div_(numbers.square().mean().sqrt())
