"""No cheat: what the others begin with."""

from __future__ import annotations

from cheat_kernels import gelu
from torch import Tensor, nn


class ModelNew(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)
