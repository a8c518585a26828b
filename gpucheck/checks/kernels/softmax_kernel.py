"""A row softmax kernel of our own: two passes over a row, tile by tile, with a running maximum and sum.

The same code runs on a GPU and in Triton's interpreter.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _row_softmax(
    x_ptr,
    y_ptr,
    x_row_stride,
    y_row_stride,
    rows,
    columns,
    log2_e,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offsets = tl.arange(0, BLOCK_N)
    inside = row[:, None] < rows
    x_rows = x_ptr + row.to(tl.int64)[:, None] * x_row_stride
    y_rows = y_ptr + row.to(tl.int64)[:, None] * y_row_stride

    maximum = tl.zeros([BLOCK_M], tl.float32) - float("inf")
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, columns, BLOCK_N):
        column = start + offsets
        mask = inside & (column[None, :] < columns)
        x = tl.load(x_rows + column[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        raised = tl.maximum(maximum, tl.max(x, 1))
        anchor = tl.where(raised == float("-inf"), 0.0, raised)  # nothing but -inf so far: avoids inf - inf
        carried = tl.exp2((maximum - anchor) * log2_e)
        total = total * carried + tl.sum(tl.exp2((x - anchor[:, None]) * log2_e), 1)
        maximum = raised

    anchor = tl.where(maximum == float("-inf"), 0.0, maximum)
    divisor = tl.where(total == 0.0, 1.0, total)
    for start in range(0, columns, BLOCK_N):
        column = start + offsets
        mask = inside & (column[None, :] < columns)
        x = tl.load(x_rows + column[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        y = tl.exp2((x - anchor[:, None]) * log2_e) / divisor[:, None]
        tl.store(y_rows + column[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


def row_softmax(x: Tensor, block_rows: int, block_columns: int) -> Tensor:
    """Softmax over the last axis, computed in fp32; a row of nothing but -inf gives zeros.

    Launches on the *current* device and deliberately sets none.

    Args:
        x: (rows, columns), last axis contiguous; bf16, fp16 or fp32.
        block_rows: rows of a tile, a power of two.
        block_columns: columns of a tile, a power of two.

    Returns:
        (rows, columns), dtype of ``x``.

    Raises:
        ValueError: another number of axes, or another layout.
    """
    if x.ndim != 2 or x.stride(1) != 1:
        raise ValueError(f"expected rows with contiguous columns, not shape {tuple(x.shape)}, strides {x.stride()}")
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    rows, columns = x.shape
    _row_softmax[(triton.cdiv(rows, block_rows),)](
        x,
        y,
        x.stride(0),
        y.stride(0),
        rows,
        columns,
        math.log2(math.e),
        BLOCK_M=block_rows,
        BLOCK_N=block_columns,
        num_warps=4,
    )
    return y
