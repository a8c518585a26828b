"""Has a weight that the problem does not know."""

from __future__ import annotations

import torch
from cheat_kernels import gelu
from torch import Tensor, nn


class ModelNew(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x) * self.scale
