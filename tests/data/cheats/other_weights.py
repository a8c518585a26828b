"""Has a weight that the problem does not know, and that is not drawn alike."""

from __future__ import annotations

import torch
from cheat_kernels import gelu
from torch import Tensor, nn


class ModelNew(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x) * self.scale
