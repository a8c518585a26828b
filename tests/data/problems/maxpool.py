from __future__ import annotations

import torch
from torch import Tensor, nn


class Model(nn.Module):
    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


def get_inputs() -> list[Tensor]:
    return [torch.randn(1, 3, 11, 13) - 2]


def get_init_inputs() -> list[object]:
    return [3, 2, 1]
