"""Changes its mind at a later call."""

from __future__ import annotations

from cheat_kernels import gelu
from torch import Tensor, nn


class ModelNew(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return gelu(x) + (self.calls > 2)
