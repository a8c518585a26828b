"""A paged decode attention kernel of our own: one query a sequence, keys and values in pages anywhere in a cache.

The same code runs on a GPU and in Triton's interpreter.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _paged_attention_decode(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    lengths_ptr,
    sink_ptr,
    out_ptr,
    q_sequence_stride,
    q_head_stride,
    page_stride,
    slot_stride,
    head_stride,
    table_stride,
    out_sequence_stride,
    out_head_stride,
    heads_per_group,
    scale,
    exponent_scale,
    SINKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths_ptr + sequence)

    group = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, HEAD_DIM)
    inside = group < heads_per_group
    heads = kv_head * heads_per_group + group
    q_rows = q_ptr + sequence * q_sequence_stride + heads[:, None] * q_head_stride
    q = tl.load(q_rows + dims[None, :], mask=inside[:, None], other=0.0)

    if SINKS:
        maximum = tl.load(sink_ptr + heads, mask=inside, other=0.0).to(tl.float32) / scale
        total = tl.zeros([BLOCK_H], tl.float32) + 1.0
    else:
        maximum = tl.zeros([BLOCK_H], tl.float32) - float("inf")
        total = tl.zeros([BLOCK_H], tl.float32)
    accumulator = tl.zeros([BLOCK_H, HEAD_DIM], tl.float32)
    for start in range(0, length, BLOCK_N):
        keys = start + columns
        seen = keys < length
        pages = tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=seen, other=0).to(tl.int64)
        places = pages * page_stride + (keys % PAGE) * slot_stride + kv_head * head_stride
        k = tl.load(k_ptr + places[None, :] + dims[:, None], mask=seen[None, :], other=0.0)
        v = tl.load(v_ptr + places[:, None] + dims[None, :], mask=seen[:, None], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee")
        scores = tl.where(seen[None, :], scores, float("-inf"))
        raised = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp2((scores - raised[:, None]) * exponent_scale)
        carried = tl.exp2((maximum - raised) * exponent_scale)
        total = total * carried + tl.sum(weights, 1)
        accumulator = accumulator * carried[:, None]
        accumulator += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        maximum = raised

    divisor = tl.where(total == 0.0, 1.0, total)
    out = accumulator / divisor[:, None]
    out_rows = out_ptr + sequence * out_sequence_stride + heads[:, None] * out_head_stride
    tl.store(out_rows + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    *,
    sinks: Tensor | None = None,
    block: int = 64,
) -> Tensor:
    """Softmax attention of one query a sequence with fp32 accumulation; a sequence without keys gives zeros.

    Launches on the *current* device and deliberately sets none.

    Args:
        q: (sequences, q_heads, head_dim), last axis contiguous; bf16, fp16 or fp32.
        k_cache: (pages, page size, kv_heads, head_dim), same dtype, contiguous; query head h reads kv head
            h // (q_heads // kv_heads); the page size is a power of two.
        v_cache: as ``k_cache``.
        block_table: (sequences, most pages) int32, the page of each page-sized piece of a sequence.
        lengths: (sequences,) int32, keys of each sequence.
        sinks: (q_heads,) one more logit of each head in the softmax, after scaling, without a value.
        block: keys taken at a time, a power of two, at least 16.

    Returns:
        (sequences, q_heads, head_dim), dtype of ``q``.

    Raises:
        ValueError: the arguments do not fit together.
    """
    sequences, q_heads, head_dim = q.shape
    _, page, kv_heads, _ = k_cache.shape
    if k_cache.shape != v_cache.shape or k_cache.shape[3] != head_dim or q_heads % kv_heads:
        raise ValueError(f"q {tuple(q.shape)} and the cache {tuple(k_cache.shape)} do not fit together")
    if not q.dtype == k_cache.dtype == v_cache.dtype or not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("q and the cache must share their dtype, and the cache must be contiguous")
    if len(block_table) != sequences or len(lengths) != sequences:
        raise ValueError(f"block_table and lengths must have a row for each of the {sequences} sequences")
    out = torch.empty_like(q)
    if q.numel() == 0:
        return out
    scale, group = head_dim**-0.5, q_heads // kv_heads
    _paged_attention_decode[(sequences, kv_heads)](
        q,
        k_cache,
        v_cache,
        block_table,
        lengths,
        sinks,
        out,
        *q.stride()[:2],
        *k_cache.stride()[:3],
        block_table.stride(0),
        *out.stride()[:2],
        group,
        scale,
        scale * math.log2(math.e),
        SINKS=sinks is not None,
        HEAD_DIM=head_dim,
        PAGE=page,
        BLOCK_H=max(16, triton.next_power_of_2(group)),
        BLOCK_N=block,
        num_warps=4,
        num_stages=1,  # older Triton cannot pipeline keys that lie where another load says
    )
    return out
