from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Model(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)


def get_inputs() -> list[Tensor]:
    return [torch.randn(24, 50) * 2, torch.randint(50, (24,))]


def get_init_inputs() -> list[object]:
    return []
