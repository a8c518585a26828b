"""No cheat: its launch is captured once and replayed at every call."""

from __future__ import annotations

import torch
from cheat_kernels import gelu
from torch import Tensor, nn


class ModelNew(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.graph: torch.cuda.CUDAGraph | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.graph is None:
            self.x = gelu(x)  # compiled before it is captured
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.y = gelu(self.x)
        self.x.copy_(x)
        self.graph.replay()
        return self.y.clone()
