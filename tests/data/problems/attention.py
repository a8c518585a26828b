from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Model(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def get_inputs() -> list[Tensor]:
    return [torch.randn(1, 2, 40, 32) for _ in range(3)]


def get_init_inputs() -> list[object]:
    return []
