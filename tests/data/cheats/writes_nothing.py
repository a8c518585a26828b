"""Launches a kernel that has nothing to do."""

from __future__ import annotations

import torch
from cheat_kernels import BLOCK, gelu_kernel
from torch import Tensor, nn


class ModelNew(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        gelu_kernel[(1,)](x, y, 0, BLOCK=BLOCK)
        return y
