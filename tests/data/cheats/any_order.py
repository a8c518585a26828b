"""Rounds otherwise from call to call, as sums do that are made in no fixed order: no cheat."""

from __future__ import annotations

from cheat_kernels import gelu
from torch import Tensor, nn


class ModelNew(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return gelu(x) * (1 + self.calls % 3 * 2.0**-23)
