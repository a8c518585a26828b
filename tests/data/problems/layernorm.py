from __future__ import annotations

import torch
from torch import Tensor, nn


class Model(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def get_inputs() -> list[Tensor]:
    return [torch.randn(10, 100) * 2 + 1]


def get_init_inputs() -> list[object]:
    return [100]
