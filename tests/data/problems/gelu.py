from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Model(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


def get_inputs() -> list[Tensor]:
    return [torch.randn(20, 50) * 2]


def get_init_inputs() -> list[object]:
    return []
