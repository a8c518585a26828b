"""What all kernels of the screen do with a group of tiles: plant a fault if asked, digest the bits, keep wrong ones.

A program runs ``groups`` groups of tiles on the multiprocessor that it finds itself on. Group g of program p is number
``(start + g + 7 p) mod POOL`` of the pool of known groups; the right digest of each number was computed on the CPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

STRIDE = tl.constexpr(7)  # by which neighbouring programs are apart in the pool
GOLDEN = tl.constexpr(0x9E3779B9)
SPREAD = tl.constexpr(0x85EBCA6B)  # multipliers of MurmurHash3's last step, which maps 32 bits one to one
SPREAD_2 = tl.constexpr(0xC2B2AE35)


@triton.jit
def multiprocessor(results, STAND_IN: tl.constexpr):
    """Writes and returns the multiprocessor that runs this program; in the interpreter the number of the program."""
    if STAND_IN:
        number = tl.program_id(0)
    else:
        number = tl.inline_asm_elementwise("mov.u32 $0, %smid;", "=r", [], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(results[5] + tl.program_id(0), number)
    return number


@triton.jit
def number_of(group, POOL: tl.constexpr):
    """The number in the pool of a group of this program, counted from the first of all launches."""
    return (group + tl.program_id(0) * STRIDE) % POOL


@triton.jit
def mixed(x):
    """Scrambles 32 bits one to one: MurmurHash3's last step."""
    x = x ^ (x >> 16)
    x = x * tl.full([], SPREAD, tl.uint32)
    x = x ^ (x >> 13)
    x = x * tl.full([], SPREAD_2, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _sum_of_all(x):
    for _ in tl.static_range(len(x.shape)):
        x = tl.sum(x, len(x.shape) - 1)  # within threads first
    return x


@triton.jit
def digest(bits, places):
    """A sum over all elements of their bits, scrambled one to one by place: no single wrong element leaves it so.

    Args:
        bits: int32 or int64, of any shape.
        places: uint32, a number for each element, of the same shape.
    """
    salt = places * tl.full([], GOLDEN, tl.uint32)
    if bits.dtype == tl.int64:
        high = mixed((bits >> 32).to(tl.uint32) ^ tl.full([], SPREAD, tl.uint32))
        low = mixed((bits & 0xFFFFFFFF).to(tl.uint32) + salt)
        summed = mixed(low ^ (high + salt)).to(tl.int64) + (low.to(tl.int64) << 32)
    else:
        summed = mixed(bits.to(tl.uint32, bitcast=True) + salt).to(tl.int64)
    return _sum_of_all(summed)


@triton.jit
def finish(bits, detail, places, group, number, sm, results, groups, PLANTED: tl.constexpr):
    """Writes the digest of a group and, where it is not the expected one, its bits.

    Args:
        bits: what the digest is of.
        detail: what is kept of a wrong group, of the same shape.
        group: of this program, in this launch.
        number: of the group in the pool.
        results: as the kernels take them: digests, expected, details, wrong, plant, multiprocessors.
        groups: how many each program runs.
        PLANTED: a self-test makes one multiprocessor faulty: ``plant`` has its number, the bits to flip in one element,
            the chance of a group times 2^32, a seed, and the element if it is always the same, else -1.
    """
    digests, expected, details, wrong, plant, _ = results
    program = tl.program_id(0)
    if PLANTED:
        seed = (tl.load(plant + 3) & 0xFFFFFFFF).to(tl.uint32)
        luck = mixed((program * groups + group).to(tl.uint32) ^ seed)
        hit = (sm == tl.load(plant)) & (luck.to(tl.int64) < tl.load(plant + 2))
        stuck = tl.load(plant + 4)
        element = tl.where(stuck >= 0, stuck, (mixed(luck) % bits.numel.value).to(tl.int64)).to(tl.uint32)
        flip = tl.where(hit & (places == element), tl.load(plant + 1), tl.full([], 0, tl.int64))
        bits = bits ^ flip.to(bits.dtype)
        detail = detail ^ flip.to(detail.dtype)
    seen = digest(bits, places)
    tl.store(digests + program * groups + group, seen)
    if seen != tl.load(expected + number):
        tl.store(details + program * bits.numel.value + places.to(tl.int64), detail.to(tl.int64))
        tl.store(wrong + program, group)
