"""Products on tensor cores, in every format of operands: a sum over K that no order of summation can round."""

from __future__ import annotations

import triton
import triton.language as tl

from gpucheck.tools.screen.kernels.common import finish, multiprocessor, number_of


@triton.jit(do_not_specialize=["groups", "start"])
def tensor_core(
    a_pool,
    b_pool,
    results,
    groups,
    start,
    K: tl.constexpr,
    POOL_A: tl.constexpr,
    POOL_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAND_IN: tl.constexpr,
    PLANTED: tl.constexpr,
):
    """Multiplies (BLOCK_M, K) by (K, BLOCK_N) panels of a pool.

    Args:
        a_pool: (POOL_A, BLOCK_M, K); b_pool: (POOL_B, BLOCK_N, K).
        results: digests, int64 (programs, groups), written; expected, int64 (POOL_A * POOL_B); details, int64
            (programs, BLOCK_M * BLOCK_N), written where a digest is wrong; wrong, int32 (programs), then the group;
            plant, int64 (5), see :func:`common.finish`; multiprocessors, int32 (programs), written.
        start: of this launch in the pool.
    """
    sm = multiprocessor(results, STAND_IN)
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    places = (rows[:, None] * BLOCK_N + columns[None, :]).to(tl.uint32)
    for group in range(groups):
        number = number_of(start + group, POOL_A * POOL_B)
        a = a_pool + (number // POOL_B) * (BLOCK_M * K) + rows[:, None] * K + ks[None, :]
        b = b_pool + (number % POOL_B) * (BLOCK_N * K) + columns[None, :] * K + ks[:, None]
        if a_pool.dtype.element_ty == tl.int8:
            total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        elif a_pool.dtype.element_ty == tl.float64:
            total = tl.zeros([BLOCK_M, BLOCK_N], tl.float64)
        else:
            total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for _ in range(0, K, BLOCK_K):
            total = tl.dot(tl.load(a), tl.load(b), total, input_precision=PRECISION, out_dtype=total.dtype)
            a += BLOCK_K
            b += BLOCK_K
        if total.dtype == tl.int32:
            bits = total
        elif total.dtype == tl.float64:
            bits = (total + 0.0).to(tl.int64, bitcast=True)  # -0.0 becomes 0.0
        else:
            bits = (total + 0.0).to(tl.int32, bitcast=True)
        finish(bits, bits, places, group, number, sm, results, groups, PLANTED)
