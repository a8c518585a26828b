"""Its output has gaps between the columns."""

from __future__ import annotations

from cheat_kernels import gelu
from torch import Tensor, nn


class ModelNew(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], 2 * x.shape[1])[:, ::2].copy_(gelu(x))
