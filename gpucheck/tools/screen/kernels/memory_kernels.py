"""Atomics, and walks over L2 and device memory: words that depend on the address, read in another order."""

from __future__ import annotations

import triton
import triton.language as tl

from gpucheck.tools.screen.kernels.common import GOLDEN, SPREAD, finish, mixed, multiprocessor, number_of


@triton.jit
def pattern(number, address):
    """The word at an address of a region: a hash, checkerboards, walking bits, the address, each with its inverse."""
    kind = number % 8
    word = mixed(address ^ ((number // 2).to(tl.uint32) * tl.full([], GOLDEN, tl.uint32)))
    word = tl.where(kind // 2 == 1, tl.where(address % 2 == 1, 0xAAAAAAAA, 0x55555555).to(tl.uint32), word)
    word = tl.where(kind // 2 == 2, (address * 0 + 1) << (address & 31), word)
    word = tl.where(kind // 2 == 3, address, word)
    return tl.where(kind % 2 == 1, word ^ 0xFFFFFFFF, word)


@triton.jit(do_not_specialize=["groups", "start"])
def walk(
    memory,
    results,
    groups,
    start,
    POOL: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
    STAND_IN: tl.constexpr,
    PLANTED: tl.constexpr,
):
    """Writes STEPS blocks of LANES words in a region of its own and reads them in another order.

    Args:
        memory: int32 (programs, STEPS * LANES). Others as in :func:`tensor_core_kernel.tensor_core`; a detail is the
            bits that were wrong in some word of the lane.
    """
    sm = multiprocessor(results, STAND_IN)
    lanes = tl.arange(0, LANES).to(tl.uint32)
    region = memory + tl.program_id(0).to(tl.int64) * (STEPS * LANES)
    for group in range(groups):
        number = number_of(start + group, POOL)
        for step in range(STEPS):
            address = lanes + step * LANES
            tl.store(region + address, pattern(number, address).to(tl.int32, bitcast=True), cache_modifier=".cg")
        tl.debug_barrier()
        total = tl.zeros([LANES], tl.uint32)
        bad = tl.zeros([LANES], tl.uint32)
        for step in range(STEPS):
            block = (step * 5 + number * 3 + 1) % STEPS
            address = lanes + block * LANES
            word = tl.load(region + address, cache_modifier=".cg").to(tl.uint32, bitcast=True)
            bad = bad | (word ^ pattern(number, address))
            total += mixed(word + address * tl.full([], GOLDEN, tl.uint32))
        tl.debug_barrier()
        bits, detail = total.to(tl.int32, bitcast=True), bad.to(tl.int32, bitcast=True)
        finish(bits, detail, lanes, group, number, sm, results, groups, PLANTED)


@triton.jit(do_not_specialize=["groups", "start"])
def atomics(
    memory,
    results,
    groups,
    start,
    POOL: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
    STAND_IN: tl.constexpr,
    PLANTED: tl.constexpr,
):
    """Atomic operations on LANES words of its own, each lane on another word in each step, then 16 words for all.

    Args:
        memory: int32 (programs, 2 * LANES). Others as in :func:`tensor_core_kernel.tensor_core`.
    """
    sm = multiprocessor(results, STAND_IN)
    lanes = tl.arange(0, LANES).to(tl.uint32)
    region = memory + tl.program_id(0).to(tl.int64) * (2 * LANES)
    common = region + LANES
    for group in range(groups):
        number = number_of(start + group, POOL)
        x = mixed(lanes + number.to(tl.uint32) * tl.full([], GOLDEN, tl.uint32))
        tl.store(region + lanes, x.to(tl.int32, bitcast=True))
        tl.store(common + lanes, lanes.to(tl.int32) * 0)
        for step in range(STEPS):
            tl.debug_barrier()
            place = (lanes * 5 + 97 * step) & (LANES - 1)
            value = x.to(tl.int32, bitcast=True)
            if step % 4 == 0:
                old = tl.atomic_add(region + place, value, sem="relaxed")
            elif step % 4 == 1:
                old = tl.atomic_xor(region + place, value, sem="relaxed")
            elif step % 4 == 2:
                old = tl.atomic_max(region + place, value, sem="relaxed")
            else:
                old = tl.atomic_xchg(region + place, value, sem="relaxed")
            x = (x ^ old.to(tl.uint32, bitcast=True)) * tl.full([], SPREAD, tl.uint32) + lanes
            tl.atomic_add(common + (place & 15), x.to(tl.int32, bitcast=True), sem="relaxed")
        tl.debug_barrier()
        own = tl.load(region + lanes, cache_modifier=".cg").to(tl.uint32, bitcast=True)
        shared = tl.load(common + (lanes & 15), cache_modifier=".cg").to(tl.uint32, bitcast=True)
        bits = (own ^ mixed(x) ^ mixed(shared + lanes)).to(tl.int32, bitcast=True)
        tl.debug_barrier()
        finish(bits, bits, lanes, group, number, sm, results, groups, PLANTED)
