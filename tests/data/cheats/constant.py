"""Ignores its input."""

from __future__ import annotations

import torch
from cheat_kernels import gelu
from torch import Tensor, nn


class ModelNew(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gelu(torch.zeros_like(x))
