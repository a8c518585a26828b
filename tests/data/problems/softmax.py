from __future__ import annotations

import torch
from torch import Tensor, nn


class Model(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, self.dim)


def get_inputs() -> list[Tensor]:
    return [torch.randn(12, 70) * 3]


def get_init_inputs() -> list[object]:
    return [1]
