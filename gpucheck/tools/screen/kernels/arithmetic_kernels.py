"""Chains of arithmetic in registers: each step takes what the last one gave, so an error anywhere reaches the end."""

from __future__ import annotations

import triton
import triton.language as tl

from gpucheck.tools.screen.kernels.common import GOLDEN, SPREAD, finish, mixed, multiprocessor, number_of


@triton.jit
def fused_multiply_add_32(p, lanes, STEPS: tl.constexpr, STAND_IN: tl.constexpr):
    """Multiply with carry in base 2^12, all of whose numbers are integers below 2^24: exact in fp32."""
    seed = mixed(lanes + p * tl.full([], GOLDEN, tl.uint32))
    x = (seed & 0x7FF).to(tl.int32).to(tl.float32)
    carry = ((seed >> 11) & 0x1FF).to(tl.int32).to(tl.float32)
    a = (((seed >> 20) & 0x3FF) * 2 + 1).to(tl.int32).to(tl.float32)
    for _ in range(STEPS):
        whole = a * x + carry
        carry = (whole * 0.000244140625 + 12582912.0) - 12582912.0
        x = whole - carry * 4096.0
    low = x.to(tl.int32, bitcast=True).to(tl.uint32, bitcast=True).to(tl.int64)
    return low | (carry.to(tl.int32, bitcast=True).to(tl.int64) << 32)


@triton.jit
def fused_multiply_add_64(p, lanes, STEPS: tl.constexpr, STAND_IN: tl.constexpr):
    """The same in base 2^26 with numbers below 2^53: exact in fp64."""
    seed = mixed(lanes + p * tl.full([], GOLDEN, tl.uint32))
    x = (mixed(seed + 1) & 0x1FFFFFF).to(tl.int32).to(tl.float64)
    carry = (mixed(seed + 2) & 0xFFFFFF).to(tl.int32).to(tl.float64)
    a = ((mixed(seed + 3) & 0xFFFFFF) * 2 + 1).to(tl.int32).to(tl.float64)
    for _ in range(STEPS):
        whole = a * x + carry
        carry = (whole * 1.4901161193847656e-08 + 6755399441055744.0) - 6755399441055744.0
        x = whole - carry * 67108864.0
    return x.to(tl.int64, bitcast=True) ^ (carry.to(tl.int64, bitcast=True) * 3)


@triton.jit
def integer(p, lanes, STEPS: tl.constexpr, STAND_IN: tl.constexpr):
    """Multiply with carry in base 2^32, with a shift and an exclusive or."""
    x = mixed(lanes + p * tl.full([], GOLDEN, tl.uint32))
    carry = mixed(x + 1) >> 2
    a = (mixed(x + 2) >> 1) | 1
    for _ in range(STEPS):
        low = x * a + carry
        carry = tl.umulhi(x, a) + (low < carry).to(tl.uint32)
        x = low ^ (low >> 15)
    return x.to(tl.int64) | (carry.to(tl.int32, bitcast=True).to(tl.int64) << 32)


@triton.jit
def _function(x, NAME: tl.constexpr):
    return tl.inline_asm_elementwise(NAME + " $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _joined(h, value):
    return (h ^ value.to(tl.int32, bitcast=True).to(tl.uint32, bitcast=True)) * tl.full([], GOLDEN, tl.uint32)


@triton.jit
def special_functions(p, lanes, STEPS: tl.constexpr, STAND_IN: tl.constexpr):
    """Eight functions of arguments from 2^-8 to 2^7, whose bits the vendor does not promise."""
    h = lanes
    u = mixed(lanes + p * tl.full([], GOLDEN, tl.uint32))
    for _ in range(STEPS):
        u = u * tl.full([], SPREAD, tl.uint32) + 1
        positive = (((u >> 5) & 0x7FFFFFF) % 0x7800000) + 0x3B800000
        x = positive.to(tl.int32).to(tl.float32, bitcast=True)
        if STAND_IN:
            h = _joined(_joined(h, tl.exp2(x * 0.5)), tl.log2(x))
            h = _joined(_joined(h, tl.sin(x)), tl.cos(x))
            h = _joined(_joined(h, tl.rsqrt(x)), tl.sqrt(x))
            h = _joined(_joined(h, 1.0 / x), tl.exp2(-x))
        else:
            h = _joined(_joined(h, _function(x * 0.5, "ex2.approx.f32")), _function(x, "lg2.approx.f32"))
            h = _joined(_joined(h, _function(x, "sin.approx.f32")), _function(x, "cos.approx.f32"))
            h = _joined(_joined(h, _function(x, "rsqrt.approx.f32")), _function(x, "sqrt.approx.f32"))
            h = _joined(_joined(h, _function(x, "rcp.approx.f32")), _function(x, "tanh.approx.f32"))
    return h.to(tl.int32, bitcast=True)


@triton.jit
def shuffles(p, lanes, STEPS: tl.constexpr, STAND_IN: tl.constexpr):
    """Words that the 32 lanes of a warp hand each other: any to any, sums over all, sums over those before."""
    x = tl.reshape(mixed(lanes + p * tl.full([], GOLDEN, tl.uint32)), [lanes.numel.value // 32, 32])
    lane = tl.arange(0, 32)[None, :] + tl.zeros([lanes.numel.value // 32, 32], tl.int32)
    for step in range(STEPS):
        x = tl.gather(x, (lane * 5 + step) & 31, 1) * tl.full([], SPREAD, tl.uint32) + tl.full([], GOLDEN, tl.uint32)
        x = x ^ tl.sum(x, 1)[:, None] ^ (x >> 16)
        x = tl.cumsum(x, 1) ^ (x >> 7)
    return tl.reshape(x, [lanes.numel.value]).to(tl.int32, bitcast=True)


@triton.jit
def shared_memory(p, lanes, STEPS: tl.constexpr, STAND_IN: tl.constexpr):
    """Words that go through shared memory to other warps, from addresses that change with each step."""
    x = mixed(lanes + p * tl.full([], GOLDEN, tl.uint32))
    for step in range(STEPS):
        source = (lanes.to(tl.int32) * (4 * step + 5) + 97 * step) & (lanes.numel.value - 1)
        x = tl.gather(x, source, 0) * tl.full([], SPREAD, tl.uint32) + lanes
        x = x ^ (x >> 15)
    return x.to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=["groups", "start"])
def chain(
    results,
    groups,
    start,
    TILE: tl.constexpr,
    POOL: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
    STAND_IN: tl.constexpr,
    PLANTED: tl.constexpr,
):
    """Runs a chain that needs no memory; arguments as in :func:`tensor_core_kernel.tensor_core`.

    Args:
        TILE: one of the functions above, of the number of a group in the pool and the numbers of its lanes.
    """
    sm = multiprocessor(results, STAND_IN)
    lanes = tl.arange(0, LANES).to(tl.uint32)
    for group in range(groups):
        number = number_of(start + group, POOL)
        bits = TILE(number.to(tl.uint32), lanes, STEPS, STAND_IN)
        finish(bits, bits, lanes, group, number, sm, results, groups, PLANTED)
