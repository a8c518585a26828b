from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def conv2d_kernel(x_ptr, weight_ptr, bias_ptr, y_ptr, channels, height, width, filters, padding, BLOCK: tl.constexpr):
    image, chosen = tl.program_id(0), tl.program_id(1)
    place = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    out_height, out_width = height + 2 * padding - 2, width + 2 * padding - 2
    row, column = place // out_width, place % out_width
    inside = place < out_height * out_width
    total = tl.zeros([BLOCK], tl.float32) + tl.load(bias_ptr + chosen)
    for channel in range(channels):
        for shift in range(9):
            from_row, from_column = row + shift // 3 - padding, column + shift % 3 - padding
            seen = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width) & inside
            x = tl.load(
                x_ptr + ((image * channels + channel) * height + from_row) * width + from_column, mask=seen, other=0.0
            )
            total += x * tl.load(weight_ptr + (chosen * channels + channel) * 9 + shift)
    tl.store(y_ptr + (image * filters + chosen) * out_height * out_width + place, total, mask=inside)


class ModelNew(nn.Module):
    def __init__(self, channels: int, filters: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        filters, padding = self.conv.out_channels, self.conv.padding[0]
        out = (height + 2 * padding - 2, width + 2 * padding - 2)
        y = torch.empty((images, filters, *out), device=x.device)
        grid = (images, filters, triton.cdiv(out[0] * out[1], 128))
        weight, bias = self.conv.weight, self.conv.bias
        conv2d_kernel[grid](x, weight, bias, y, channels, height, width, filters, padding, BLOCK=128)
        return y
