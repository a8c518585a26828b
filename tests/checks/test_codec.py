"""The codec against a search through tables of every code."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from gpucheck.checks import codec

FORMATS = ("mxfp4", "mxfp8_e4m3", "mxfp8_e5m2")


def element(kind: str, code: int) -> float:
    """The value of one code, from its bits; NaN and Inf where the format has them."""
    exponents, mantissas, bias = {"mxfp4": (2, 1, 1), "mxfp8_e4m3": (4, 3, 7), "mxfp8_e5m2": (5, 2, 15)}[kind]
    sign = code >> (exponents + mantissas)
    exponent, mantissa = code >> mantissas & (2**exponents - 1), code & (2**mantissas - 1)
    if kind == "mxfp8_e4m3" and code & 0x7F == 0x7F:
        return math.nan
    if kind == "mxfp8_e5m2" and exponent == 31:
        return math.nan if mantissa else math.copysign(math.inf, -sign)
    fraction = mantissa / 2**mantissas
    size = fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias)
    return -size if sign else size


TABLES = {kind: [element(kind, code) for code in range(16 if kind == "mxfp4" else 256)] for kind in FORMATS}


def nearest(kind: str, value: Fraction, negative: bool, rounding: str) -> int:
    """The code nearest to a value; ties by ``rounding``, among the codes of the value's sign."""
    half = len(TABLES[kind]) // 2
    sizes = [size for size in TABLES[kind][:half] if math.isfinite(size)]
    distances = [abs(Fraction(size) - abs(value)) for size in sizes]
    best = min(distances)
    codes = [code for code, distance in enumerate(distances) if distance == best]
    code = codes[-1] if rounding == "half-away" else min(codes, key=lambda code: code % 2)
    return code + half * negative


def oracle(block: list[float], kind: str, rounding: str) -> tuple[list[int], int]:
    """Codes and scale byte of one block: the smallest power of two under which nothing is clipped."""
    largest = max(size for size in TABLES[kind] if math.isfinite(size))
    peak = max(abs(value) for value in block)
    if peak == 0:
        return [nearest(kind, Fraction(0), math.copysign(1, v) < 0, rounding) for v in block], 0
    exponent = next(e for e in range(-126, 128) if Fraction(peak) <= Fraction(largest) * Fraction(2) ** e)
    scaled = [Fraction(value) / Fraction(2) ** exponent for value in block]
    signs = [math.copysign(1, value) < 0 for value in block]
    return [nearest(kind, s, n, rounding) for s, n in zip(scaled, signs, strict=True)], exponent + 127


def awkward(kind: str, generator: torch.Generator) -> torch.Tensor:
    """Blocks of ties, of codes themselves, of zeros, of tiny beside large values."""
    sizes = sorted({abs(v) for v in TABLES[kind] if math.isfinite(v)})
    ties = [(a + b) / 2 for a, b in itertools.pairwise(sizes)]
    top = sizes[-1]
    pool = torch.tensor(
        [*sizes, *ties, *(tie * (1 + 2.0**-20) for tie in ties), *(tie * (1 - 2.0**-20) for tie in ties)]
    )
    blocks = pool.float().double()[torch.randint(0, len(pool), (12, 32), generator=generator)]
    blocks[:4, 0] = top  # scale 1: ties stay ties
    blocks[4, :] = 0.0
    blocks[5] = torch.randn(32, generator=generator).float().double() * 1e-3
    blocks[6, 1] = top * 1.0001  # just beyond: the next scale
    blocks[7] *= 2.0**30
    blocks[8] *= 2.0**-30
    return blocks.float().double() * (torch.randint(0, 2, blocks.shape, generator=generator) * 2 - 1)


@pytest.mark.parametrize(
    ("kind", "rounding"),
    [("mxfp4", "half-away"), ("mxfp4", "even"), ("mxfp8_e4m3", "even"), ("mxfp8_e5m2", "even")],
)
def test_encoding_finds_the_nearest_code_of_every_value(kind: str, rounding: str) -> None:
    x = awkward(kind, torch.Generator().manual_seed(0))
    codes, scales = codec.encode(x, kind, 1, rounding)
    if kind == "mxfp4":
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    for row, block in enumerate(x.tolist()):
        expected, scale = oracle(block, kind, rounding)
        assert (codes[row].tolist(), int(scales[row])) == (expected, scale)


def test_the_two_roundings_of_fp4_differ_at_ties_only() -> None:
    x = torch.tensor([[6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0, 0.2, 2.6]]).double()

    def values(rounding: str) -> list[float]:
        codes, scales = codec.encode(x, "mxfp4", 1, rounding)
        decoded: list[float] = codec.decode(codes, scales, 1)[0].tolist()
        return decoded

    assert values("half-away") == [6, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6, 0, 3]
    assert values("even") == [6, 0, 1, 1, 2, 2, 4, 4, -0.0, -4, 0, 3]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("length", [32, 40, 70])
def test_every_axis_encodes_like_the_last(kind: str, axis: int, length: int) -> None:
    shape = [2, 4, 6]
    shape[axis] = length
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().double()
    codes, scales = codec.encode(x, kind, axis, "even")
    last_codes, last_scales = codec.encode(x.movedim(axis, -1).contiguous(), kind, -1, "even")
    assert torch.equal(codes.movedim(axis, -1), last_codes) and torch.equal(scales.movedim(axis, -1), last_scales)
    assert scales.shape[axis] == -(-length // 32) and codes.dtype == scales.dtype == torch.uint8


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_decoding_is_code_times_scale(kind: str, axis: int) -> None:
    generator = torch.Generator().manual_seed(2)
    shape, blocks = [2, 2, 2], [2, 2, 2]
    shape[axis], blocks[axis] = 40, 2
    stored = list(shape)
    stored[axis] //= 2 if kind == "mxfp4" else 1
    codes = torch.randint(0, 256, stored, generator=generator, dtype=torch.uint8)
    if kind != "mxfp4":
        codes = torch.where(codes & 0x7F >= 0x7C, 0x11, codes)  # no NaN and Inf
    scales = torch.randint(100, 150, blocks, generator=generator, dtype=torch.uint8)
    dtype = {"mxfp8_e4m3": torch.float8_e4m3fn, "mxfp8_e5m2": torch.float8_e5m2}.get(kind, torch.uint8)
    decoded = codec.decode(codes.view(dtype), scales, axis)
    for place in torch.ones(shape).nonzero().tolist():
        source, block = list(place), list(place)
        block[axis] //= 32
        if kind == "mxfp4":
            source[axis] //= 2
        code = int(codes[tuple(source)])
        if kind == "mxfp4":
            code = code >> 4 if place[axis] % 2 else code & 15
        assert float(decoded[tuple(place)]) == TABLES[kind][code] * 2.0 ** (int(scales[tuple(block)]) - 127)


@pytest.mark.parametrize("kind", FORMATS)
def test_codes_survive_a_round_trip(kind: str) -> None:
    sizes = [value for value in TABLES[kind] if math.isfinite(value)]
    x = torch.tensor(sizes[: len(sizes) // 32 * 32] or sizes + sizes).double().reshape(-1, 32)
    x[:, 0] = max(sizes)
    codes, scales = codec.encode(x, kind, 1, "even")
    dtype = {"mxfp8_e4m3": torch.float8_e4m3fn, "mxfp8_e5m2": torch.float8_e5m2}.get(kind, torch.uint8)
    assert torch.equal(codec.decode(codes.view(dtype), scales, 1), x)
