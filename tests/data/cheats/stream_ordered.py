"""No cheat: a stream of its own behind that of the caller, which waits for it."""

from __future__ import annotations

import torch
from cheat_kernels import gelu
from torch import Tensor, nn


class ModelNew(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        current = torch.cuda.current_stream(x.device)
        self.stream = getattr(self, "stream", None) or torch.cuda.Stream(x.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            y = gelu(x)
        current.wait_stream(self.stream)
        y.record_stream(current)
        return y
