from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def rmsnorm_kernel(x_ptr, weight_ptr, y_ptr, columns, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + column, mask=column < columns, other=0.0)
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0)
    y = x / tl.sqrt(tl.sum(x * x, 0) / columns + epsilon) * weight
    tl.store(y_ptr + row * columns + column, y, mask=column < columns)


class ModelNew(nn.Module):
    def __init__(self, features: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        rows, columns = x.shape
        block = triton.next_power_of_2(columns)
        rmsnorm_kernel[(rows,)](x, self.weight, y, columns, self.epsilon, BLOCK=block)
        return y
