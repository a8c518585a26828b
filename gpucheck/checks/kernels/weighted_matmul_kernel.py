"""A matrix product of our own for the second step of explicit attention: weights times values.

The same code runs on a GPU and in Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _weighted_matmul(
    weights_ptr,
    values_ptr,
    out_ptr,
    weights_batch_stride,
    weights_row_stride,
    values_batch_stride,
    values_row_stride,
    out_batch_stride,
    out_row_stride,
    rows,
    keys,
    columns,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    batch = tl.program_id(2).to(tl.int64)
    offsets = tl.arange(0, BLOCK_K)

    weights_rows = weights_ptr + batch * weights_batch_stride + row.to(tl.int64)[:, None] * weights_row_stride
    values_columns = values_ptr + batch * values_batch_stride + column[None, :]
    accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, keys, BLOCK_K):
        key = start + offsets
        weights_mask = (row[:, None] < rows) & (key[None, :] < keys)
        values_mask = (key[:, None] < keys) & (column[None, :] < columns)
        weights = tl.load(weights_rows + key[None, :], mask=weights_mask, other=0.0)
        value_rows = values_columns + key.to(tl.int64)[:, None] * values_row_stride
        values = tl.load(value_rows, mask=values_mask, other=0.0)
        accumulator += tl.dot(weights, values, input_precision="ieee")

    out = accumulator.to(out_ptr.dtype.element_ty)
    out_rows = out_ptr + batch * out_batch_stride + row.to(tl.int64)[:, None] * out_row_stride
    tl.store(out_rows + column[None, :], out, mask=(row[:, None] < rows) & (column[None, :] < columns))


def weighted_matmul(weights: Tensor, values: Tensor, block: tuple[int, int]) -> Tensor:
    """``weights @ values`` with fp32 accumulation.

    Launches on the *current* device and deliberately sets none.

    Args:
        weights: (batch, rows, keys), last axis contiguous; bf16, fp16 or fp32.
        values: (batch, keys, columns), same dtype, last axis contiguous.
        block: rows and columns of a tile of the output, powers of two, at least 16.

    Returns:
        (batch, rows, columns), dtype of the operands.

    Raises:
        ValueError: the operands do not fit together.
    """
    if weights.ndim != 3 or values.ndim != 3 or weights.shape[::2] != (values.shape[0], values.shape[1]):
        raise ValueError(f"weights {tuple(weights.shape)} and values {tuple(values.shape)} do not fit together")
    if weights.dtype != values.dtype or weights.stride(2) != 1 or values.stride(2) != 1:
        raise ValueError("weights and values must share their dtype, and their last axes must be contiguous")
    batch, rows, keys = weights.shape
    columns = values.shape[2]
    out = torch.empty((batch, rows, columns), dtype=values.dtype, device=values.device)
    if out.numel() == 0:
        return out
    grid = (triton.cdiv(rows, block[0]), triton.cdiv(columns, block[1]), batch)
    _weighted_matmul[grid](
        weights,
        values,
        out,
        *weights.stride()[:2],
        *values.stride()[:2],
        *out.stride()[:2],
        rows,
        keys,
        columns,
        BLOCK_M=block[0],
        BLOCK_N=block[1],
        BLOCK_K=32,
        num_warps=4,
    )
    return out
