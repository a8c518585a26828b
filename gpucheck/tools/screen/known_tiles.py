"""The operands of each group of tiles and its right digest, in numpy: known on the CPU before any GPU computes one.

Everything is an integer that the format holds, so no order of summation rounds: operands are small integers times
powers of two that cancel in each product, and the magnitudes of each sum add up to less than the accumulator holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucheck.tools.screen.datapaths import PANELS, POOL, Datapath

Array = np.ndarray[Any, Any]

GOLDEN, SPREAD, SPREAD_2 = np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
HELD = {"float8_e4m3fn": 2.0**13, "float8_e5m2": 2.0**13, "int8": 2.0**31, "float64": 2.0**53}
"""Below it integers are added without rounding, whatever the order; fp8 sums keep 13 bits below their largest term."""
USUAL_HELD = 2.0**24


def mixed(x: Array) -> Array:
    """As in the kernels: 32 bits to 32 bits, one to one."""
    x = x ^ (x >> np.uint32(16))
    x = x * SPREAD
    x = x ^ (x >> np.uint32(13))
    x = x * SPREAD_2
    return x ^ (x >> np.uint32(16))


def digest(bits: Array) -> int:
    """The digest of a group.

    Args:
        bits: int32 or int64, flat.
    """
    salt = np.arange(bits.size, dtype=np.uint32) * GOLDEN
    if bits.dtype == np.int64:
        high = mixed((bits >> 32).astype(np.uint32) ^ SPREAD)
        low = mixed((bits & 0xFFFFFFFF).astype(np.uint32) + salt)
        summed = mixed(low ^ (high + salt)).astype(np.int64) + (low.astype(np.int64) << 32)
    else:
        summed = mixed(bits.view(np.uint32) + salt).astype(np.int64)
    return int(summed.sum())


def operands(path: Datapath, seed: int) -> tuple[Array, Array]:
    """The panels of a product: float64 (PANELS, M, K) and (PANELS, N, K), all values exact in the format."""
    (a, b), powers = _integers(path, seed)
    return a * powers, b / powers


def _integers(path: Datapath, seed: int) -> tuple[tuple[Array, Array], Array]:
    made = np.random.default_rng([seed, *path.name.encode()])
    m, n, _ = path.block
    sizes = [(PANELS, m, path.k), (PANELS, n, path.k)]
    a, b = (_small_more_often(made, path.largest, size) * made.choice([-1, 1], size) for size in sizes)
    powers = np.exp2(made.integers(-path.spread, path.spread + 1, path.k)) if path.spread else np.ones(path.k)
    return (a, b), powers


def _small_more_often(made: np.random.Generator, largest: int, size: tuple[int, ...]) -> Array:
    """Integers from 1 on, each about as often as it is small: sums stay short, and all bits of the format occur."""
    return np.floor(np.exp(made.random(size) * np.log(largest + 1)))


def _product_bits(path: Datapath, seed: int) -> list[Array]:
    (a, b), _ = _integers(path, seed)
    held = HELD.get(path.format, USUAL_HELD)
    kind = {"float64": np.float64, "int8": np.int32}.get(path.format, np.float32)
    if kind is np.float32:
        a, b = a.astype(kind), b.astype(kind)  # adds integers below USUAL_HELD without rounding, and twice as fast
    found = []
    for left in a:
        for right in b:
            most = (np.abs(left) @ np.abs(right).T).max()
            assert most < held, f"{path.name}: magnitudes of a sum reach {most}, and only {held} is added exactly"
            total = (left @ right.T + 0.0).astype(kind).ravel()
            found.append(total.view(np.int64 if kind is np.float64 else np.int32))
    return found


def _seeds(number: int, lanes: int) -> Array:
    return mixed(np.arange(lanes, dtype=np.uint32) + np.uint32(number) * GOLDEN)


def _fused_multiply_add_32(number: int, path: Datapath) -> Array:
    seed = _seeds(number, path.lanes)
    x, carry = (seed & 0x7FF).astype(np.int64), ((seed >> 11) & 0x1FF).astype(np.int64)
    a = (((seed >> 20) & 0x3FF) * 2 + 1).astype(np.int64)
    x, carry = _multiplied_with_carry(x, carry, a, 12, path.steps)
    low, high = (each.astype(np.float32).view(np.uint32).astype(np.int64) for each in (x, carry))
    return low | (high << 32)


def _fused_multiply_add_64(number: int, path: Datapath) -> Array:
    seed = _seeds(number, path.lanes)
    x = (mixed(seed + np.uint32(1)) & 0x1FFFFFF).astype(np.int64)
    carry = (mixed(seed + np.uint32(2)) & 0xFFFFFF).astype(np.int64)
    a = ((mixed(seed + np.uint32(3)) & 0xFFFFFF) * 2 + 1).astype(np.int64)
    x, carry = _multiplied_with_carry(x, carry, a, 26, path.steps)
    return x.astype(np.float64).view(np.int64) ^ (carry.astype(np.float64).view(np.int64) * 3)


def _multiplied_with_carry(x: Array, carry: Array, a: Array, power: int, steps: int) -> tuple[Array, Array]:
    for _ in range(steps):
        whole = a * x + carry
        carry = np.rint(whole / float(1 << power)).astype(np.int64)
        x = whole - (carry << power)
    return x, carry


def _integer(number: int, path: Datapath) -> Array:
    x = _seeds(number, path.lanes)
    carry, a = mixed(x + np.uint32(1)) >> np.uint32(2), (mixed(x + np.uint32(2)) >> np.uint32(1)) | np.uint32(1)
    for _ in range(path.steps):
        whole = x.astype(np.uint64) * a + carry
        carry, low = (whole >> np.uint64(32)).astype(np.uint32), whole.astype(np.uint32)
        x = low ^ (low >> np.uint32(15))
    return x.astype(np.int64) | (carry.astype(np.int64) << 32)


def _shuffles(number: int, path: Datapath) -> Array:
    x: Array = _seeds(number, path.lanes).reshape(-1, 32)
    lane = np.arange(32)
    for step in range(path.steps):
        x = x[:, (lane * 5 + step) & 31] * SPREAD + GOLDEN
        x = x ^ x.sum(1, dtype=np.uint32)[:, None] ^ (x >> np.uint32(16))
        x = x.cumsum(1, dtype=np.uint32) ^ (x >> np.uint32(7))
    return x.ravel().view(np.int32)


def _shared_memory(number: int, path: Datapath) -> Array:
    x, lanes = _seeds(number, path.lanes), np.arange(path.lanes)
    for step in range(path.steps):
        source = (lanes * (4 * step + 5) + 97 * step) & (path.lanes - 1)
        x = x[source] * SPREAD + lanes.astype(np.uint32)
        x = x ^ (x >> np.uint32(15))
    return x.view(np.int32)


def _walk(number: int, path: Datapath) -> Array:
    address = np.arange(path.words, dtype=np.uint32)
    seen = mixed(pattern(number, address) + address * GOLDEN)
    return seen.reshape(path.steps, path.lanes).sum(0, dtype=np.uint32).view(np.int32)


def pattern(number: int, address: Array) -> Array:
    """The words at addresses of a region, as in the kernel."""
    word = {
        0: lambda: mixed(address ^ (np.uint32(number // 2) * GOLDEN)),
        1: lambda: np.where(address % 2 == 1, 0xAAAAAAAA, 0x55555555).astype(np.uint32),
        2: lambda: np.uint32(1) << (address & np.uint32(31)),
        3: lambda: address,
    }[number % 8 // 2]()
    return ~word if number % 2 else word


def _atomics(number: int, path: Datapath) -> Array:
    lanes = np.arange(path.lanes, dtype=np.uint32)
    x = _seeds(number, path.lanes)
    own, common = x.copy(), np.zeros(16, np.uint32)
    combine: list[Callable[[Array, Array], Array]] = [
        np.add,
        np.bitwise_xor,
        lambda old, new: np.maximum(old.view(np.int32), new.view(np.int32)).view(np.uint32),
        lambda old, new: new,
    ]
    for step in range(path.steps):
        place = (lanes * np.uint32(5) + np.uint32(97 * step)) & np.uint32(path.lanes - 1)
        old = own[place]
        own[place] = combine[step % 4](old, x)
        x = (x ^ old) * SPREAD + lanes
        np.add.at(common, place & np.uint32(15), x)
    return (own ^ mixed(x) ^ mixed(common[lanes & np.uint32(15)] + lanes)).view(np.int32)


_CHAINS: dict[str, Callable[[int, Datapath], Array]] = {
    "fused_multiply_add_32": _fused_multiply_add_32,
    "fused_multiply_add_64": _fused_multiply_add_64,
    "integer": _integer,
    "shuffles": _shuffles,
    "shared_memory": _shared_memory,
}


def known_bits(path: Datapath, seed: int) -> list[Array]:
    """The right bits of each group of the pool, int32 or int64; empty where the vendor does not promise them."""
    if path.kernel == "tensor_core":
        return _product_bits(path, seed)
    kernels = {"walk": _walk, "atomics": _atomics}
    make = kernels.get(path.kernel) or _CHAINS.get(path.function)
    with np.errstate(over="ignore"):
        return [make(number, path) for number in range(POOL)] if make else []


def known_digests(bits: list[Array]) -> Array:
    """The right digest of each group, int64."""
    with np.errstate(over="ignore"):
        return np.array([digest(each) for each in bits], np.int64)
