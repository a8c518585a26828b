from __future__ import annotations

import torch
from torch import Tensor, nn


class Model(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def get_inputs() -> list[Tensor]:
    return [torch.randn(40, 75), torch.randn(75, 50)]


def get_init_inputs() -> list[object]:
    return []
