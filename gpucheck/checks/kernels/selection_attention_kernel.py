"""A selection attention forward kernel of our own: each query sees the keys of a few ranges of its own.

It is the selection branch of native sparse attention. The same code runs on a GPU and in Triton's interpreter.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _selection_attention_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    ranges_ptr,
    q_starts_ptr,
    k_starts_ptr,
    out_ptr,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    ranges_token_stride,
    ranges_head_stride,
    out_token_stride,
    out_head_stride,
    q_len,
    k_len,
    heads_per_group,
    slots,
    exponent_scale,
    VARIABLE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    row = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    sequence = tl.program_id(2)
    if VARIABLE:
        first_query = tl.load(q_starts_ptr + sequence)
        first_key = tl.load(k_starts_ptr + sequence)
        if row >= tl.load(q_starts_ptr + sequence + 1) - first_query:
            return
    else:
        first_query = sequence * q_len
        first_key = sequence * k_len
    token = (first_query + row).to(tl.int64)

    group = tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_L)
    dims = tl.arange(0, HEAD_DIM)
    inside = group < heads_per_group
    heads = kv_head * heads_per_group + group
    q_rows = q_ptr + token * q_token_stride + heads[:, None] * q_head_stride
    q = tl.load(q_rows + dims[None, :], mask=inside[:, None], other=0.0)
    k_base = k_ptr + kv_head * k_head_stride
    v_base = v_ptr + kv_head * v_head_stride
    slot_ptr = ranges_ptr + token * ranges_token_stride + kv_head * ranges_head_stride

    maximum = tl.zeros([BLOCK_H], tl.float32) - float("inf")
    total = tl.zeros([BLOCK_H], tl.float32)
    accumulator = tl.zeros([BLOCK_H, HEAD_DIM], tl.float32)
    for slot in range(slots):
        begin = tl.load(slot_ptr + 2 * slot)
        end = tl.load(slot_ptr + 2 * slot + 1)
        for start in range(begin, end, BLOCK_L):
            keys = start + columns
            seen = keys < end
            places = (first_key + keys).to(tl.int64)
            k_places = k_base + places[None, :] * k_token_stride + dims[:, None]
            v_places = v_base + places[:, None] * v_token_stride + dims[None, :]
            k = tl.load(k_places, mask=seen[None, :], other=0.0)
            v = tl.load(v_places, mask=seen[:, None], other=0.0)
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
    out_rows = out_ptr + token * out_token_stride + heads[:, None] * out_head_stride
    tl.store(out_rows + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def selection_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ranges: Tensor,
    *,
    batch: int,
    starts: tuple[Tensor, Tensor] | None = None,
    most_queries: int,
    block: int = 128,
) -> Tensor:
    """Softmax attention over selected keys with fp32 accumulation; a query that selects none gives zeros.

    Launches on the *current* device and deliberately sets none.

    Args:
        q: (queries, q_heads, head_dim), the sequences one after the other, last axis contiguous; bf16, fp16 or fp32.
        k: (keys, kv_heads, head_dim), same dtype; query head h reads kv head h // (q_heads // kv_heads).
        v: as ``k``.
        ranges: (queries, kv_heads, slots, 2) int32, first selected key and the one after the last, counted within the
            sequence; a slot is empty where they are equal. The slots of a query do not overlap.
        batch: sequences.
        starts: where each sequence starts among queries and among keys, and where the last one ends, both
            (batch + 1,) int32; None where all are equally long.
        most_queries: of a sequence.
        block: keys taken at a time, a power of two, at least 16.

    Returns:
        (queries, q_heads, head_dim), dtype of ``q``.

    Raises:
        ValueError: the arguments do not fit together.
    """
    queries, q_heads, head_dim = q.shape
    kv_heads = k.shape[1]
    if k.shape != v.shape or k.shape[2] != head_dim or q_heads % kv_heads or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit together")
    if ranges.shape[:2] != (queries, kv_heads) or ranges.shape[3:] != (2,) or not ranges.is_contiguous():
        raise ValueError(f"ranges must be ({queries}, {kv_heads}, slots, 2) and contiguous, not {tuple(ranges.shape)}")
    out = torch.empty_like(q)
    if q.numel() == 0:
        return out
    q_starts, k_starts = starts or (None, None)
    group = q_heads // kv_heads
    _selection_attention_forward[(most_queries, kv_heads, batch)](
        q,
        k,
        v,
        ranges,
        q_starts,
        k_starts,
        out,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *ranges.stride()[:2],
        *out.stride()[:2],
        queries // batch,
        k.shape[0] // batch,
        group,
        ranges.shape[2],
        head_dim**-0.5 * math.log2(math.e),
        VARIABLE=starts is not None,
        HEAD_DIM=head_dim,
        BLOCK_H=max(16, triton.next_power_of_2(group)),
        BLOCK_L=block,
        num_warps=4,
        num_stages=1,
    )
    return out
