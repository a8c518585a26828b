from __future__ import annotations

import torch
from torch import Tensor, nn


class Model(nn.Module):
    def __init__(self, channels: int, filters: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def get_inputs() -> list[Tensor]:
    return [torch.randn(1, 2, 7, 9)]


def get_init_inputs() -> list[object]:
    return [2, 3, 1]
