"""A flash-attention forward kernel of our own: grouped heads, causal and sliding-window masks, attention sinks.

The same code runs on a GPU and in Triton's interpreter.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _flash_attention_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    sink_ptr,
    out_ptr,
    q_batch_stride,
    q_head_stride,
    q_row_stride,
    k_batch_stride,
    k_head_stride,
    k_row_stride,
    v_batch_stride,
    v_head_stride,
    v_row_stride,
    out_batch_stride,
    out_head_stride,
    out_row_stride,
    q_heads,
    heads_per_group,
    q_len,
    k_len,
    window,
    scale,
    exponent_scale,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # The last queries see the most keys under a causal mask: they start first.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    batch = (tl.program_id(1) // q_heads).to(tl.int64)
    head = (tl.program_id(1) % q_heads).to(tl.int64)
    kv_head = head // heads_per_group
    rows = first_row + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, HEAD_DIM)
    positions = rows + (k_len - q_len)

    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    k_base = k_ptr + batch * k_batch_stride + kv_head * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + kv_head * v_head_stride
    q = tl.load(q_base + rows[:, None] * q_row_stride + dims[None, :], mask=rows[:, None] < q_len, other=0.0)

    first_key = 0
    end_key = k_len
    if CAUSAL:
        end_key = tl.minimum(k_len, first_row + BLOCK_M + k_len - q_len)
    if WINDOW:
        first_key = tl.maximum(0, first_row + k_len - q_len - window + 1) // BLOCK_N * BLOCK_N

    # The running maximum is kept in units of q.k, so the exponent of the largest key is exactly zero whatever the
    # scale, and no compiler can fuse a rounding difference into it.
    if SINKS:
        sink = tl.load(sink_ptr + head).to(tl.float32) / scale
        maximum = tl.zeros([BLOCK_M], tl.float32) + sink
        total = tl.zeros([BLOCK_M], tl.float32) + 1.0
    else:
        maximum = tl.zeros([BLOCK_M], tl.float32) - float("inf")
        total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)

    for start in range(first_key, end_key, BLOCK_N):
        keys = start + columns
        k = tl.load(k_base + keys[None, :] * k_row_stride + dims[:, None], mask=keys[None, :] < k_len, other=0.0)
        v = tl.load(v_base + keys[:, None] * v_row_stride + dims[None, :], mask=keys[:, None] < k_len, other=0.0)
        scores = tl.dot(q, k, input_precision="ieee")
        visible = (keys < k_len)[None, :]
        if CAUSAL:
            visible = visible & (keys[None, :] <= positions[:, None])
        if WINDOW:
            visible = visible & (positions[:, None] - keys[None, :] < window)
        scores = tl.where(visible, scores, float("-inf"))
        raised = tl.maximum(maximum, tl.max(scores, 1))
        anchor = tl.where(raised == float("-inf"), 0.0, raised)  # no key seen yet: avoids inf - inf
        weights = tl.exp2((scores - anchor[:, None]) * exponent_scale)
        carried = tl.exp2((maximum - anchor) * exponent_scale)
        total = total * carried + tl.sum(weights, 1)
        accumulator = accumulator * carried[:, None]
        accumulator += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        maximum = raised

    divisor = tl.where(total == 0.0, 1.0, total)
    out = accumulator / divisor[:, None]
    out_base = out_ptr + batch * out_batch_stride + head * out_head_stride
    out_ptrs = out_base + rows[:, None] * out_row_stride + dims[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=rows[:, None] < q_len)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int = 0,
    sinks: Tensor | None = None,
    block_rows: int = 128,
) -> Tensor:
    """Softmax attention with fp32 accumulation; a row that sees no key gives zeros.

    Launches on the *current* device and deliberately sets none: under some placements that differs from ``q.device``,
    and what happens then is what the tool looks at.

    Args:
        q: (batch, q_heads, q_len, head_dim), head_dim 64 or 128, last axis contiguous; bf16, fp16 or fp32.
        k: (batch, kv_heads, k_len, head_dim), same dtype; query head h reads kv head h // (q_heads // kv_heads).
        v: as ``k``.
        causal: query i sees key j only if j <= p with p = i + k_len - q_len: the last query sees the last key.
        window: if positive, query i sees key j only if p - j < window.
        sinks: (q_heads,) one more logit of each head in the softmax, after scaling, without a value.
        block_rows: queries of one tile, a power of two from 16 to 128.

    Returns:
        (batch, q_heads, q_len, head_dim), dtype of ``q``.

    Raises:
        ValueError: the arguments do not fit together.
    """
    _require_fitting(q, k, v, sinks)
    batch, q_heads, q_len, head_dim = q.shape
    kv_heads, k_len = k.shape[1], k.shape[2]
    scale = head_dim**-0.5
    out = torch.empty_like(q)
    if q.numel() == 0:
        return out
    wide = q.element_size() == 4
    grid = (triton.cdiv(q_len, block_rows), batch * q_heads)
    _flash_attention_forward[grid](
        q,
        k,
        v,
        sinks,
        out,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *out.stride()[:3],
        q_heads,
        q_heads // kv_heads,
        q_len,
        k_len,
        window,
        scale,
        scale * math.log2(math.e),
        CAUSAL=causal,
        WINDOW=window > 0,
        SINKS=sinks is not None,
        HEAD_DIM=head_dim,
        BLOCK_M=block_rows,
        BLOCK_N=32 if wide else 64,
        num_warps=8 if block_rows == 128 else 4,
        num_stages=3 if head_dim == 64 and not wide else 2,  # more do not fit into 64 KiB of shared memory
    )
    return out


def _require_fitting(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> None:
    """Raises ValueError where shapes, dtypes or layouts do not fit together."""
    batch, q_heads, _, head_dim = q.shape
    if head_dim not in (64, 128):
        raise ValueError(f"head_dim must be 64 or 128, not {head_dim}")
    if k.shape != v.shape or (k.shape[0], k.shape[3]) != (batch, head_dim):
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit together")
    if q_heads % k.shape[1]:
        raise ValueError(f"{q_heads} query heads cannot share {k.shape[1]} kv heads evenly")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"q, k and v must share bf16, fp16 or fp32, not {q.dtype}, {k.dtype}, {v.dtype}")
    if any(tensor.stride(-1) != 1 for tensor in (q, k, v)):
        raise ValueError("the last axis of q, k and v must be contiguous")
    if sinks is not None and sinks.shape != (q_heads,):
        raise ValueError(f"sinks must hold one logit a query head ({q_heads}), not {tuple(sinks.shape)}")
