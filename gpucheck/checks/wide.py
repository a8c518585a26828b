"""Wide data: operands over the whole range of their formats, whose products are still of one size.

The exponents of activations fall where those of weights rise, from one block of 32 terms to the next: each term counts
in every sum, nothing overflows by accident, and bounds are as tight as for values of one size. What does not fit that
comes in rows and columns of its own, between usual ones that it must not change: NaN, Inf, -0.0, subnormal numbers,
sums that overflow, and the ends of the scale bytes.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from gpucheck.checks.operands import BLOCK, DTYPES, decode_weight, random_bytes
from gpucheck.model.case import Case
from gpucheck.verify import extremes

HALF_RANGE = {"bf16": 124, "fp32": 124, "fp16": 13, "fp8_e4m3": 6, "fp8_e5m2": 13}
"""Exponents go from minus this to this, so that a number of either operand is normal."""
USUAL_SCALE = 119  # with 120 the scale byte of most blocks of weights drawn from N(0, 1/sqrt(2880)), gpt-oss's width
INFINITIES = torch.tensor([torch.inf, -torch.inf, -torch.inf, torch.inf])  # where columns take turns, two of each
ZEROS = 0.05  # share of usual values
SPECIAL_ROWS = ("nan", "inf", "zero", "subnormal", "overflow", "order")
"""What rows are, where there are twice as many; fewer rows hold the first of them alone."""
FEWEST_COLUMNS = 8  # for columns with scale bytes 0, 254 and 255
SCALE_COLUMNS = {1: 0, 3: 254, 5: 255}  # column -> the byte that one of its blocks has


def exponents(kind: str, terms: int, generator: Generator) -> Tensor:
    """The exponent (terms,) int64 of the activations of each term; weights have its negative.

    One block lies at each end, and in mx kinds one in three has the scales that real weights have.
    """
    blocks = -(-terms // BLOCK)
    end = HALF_RANGE["bf16" if kind.startswith("mx") else kind]
    drawn = torch.randint(-end, end + 1, (blocks,), generator=generator)
    if kind.startswith("mx"):
        drawn[2::3] = 127 - USUAL_SCALE
    if blocks > 1:
        ends = torch.randint(end - end // 8, end + 1, (2,), generator=generator)
        drawn[0], drawn[1] = ends[0], -ends[1]
    order = torch.randperm(blocks, generator=generator)
    return drawn[order].repeat_interleave(BLOCK)[:terms]


def activations(
    kind: str,
    shape: tuple[int, ...],
    exponent: Tensor,
    generator: Generator,
    special: tuple[str, ...] = SPECIAL_ROWS,
) -> Tensor:
    """Activations (..., M, K) of these exponents, some of them zero, with ``special`` rows from row 1 on."""
    x = _drawn(shape, exponent, generator)
    rows, terms = shape[-2:]
    if terms and rows > 1:
        for row, name in enumerate(special if rows >= 2 * len(special) else special[:1], 1):
            x[..., row, :] = _special_row(name, x[..., row, :], DTYPES[kind], exponent, generator)
    return x.to(DTYPES[kind])


def weights(
    kind: str, shape: tuple[int, ...], exponent: Tensor, generator: Generator, *, ends: bool = True
) -> dict[str, Tensor]:
    """A weight (..., K, N) with the negative exponents, in the form of :func:`gpucheck.checks.operands.weights`.

    mx kinds have with ``ends``, in SCALE_COLUMNS, a block each with scale byte 0, 254 and 255. Where scales are large,
    values are so small that bf16 holds each product of both.
    """
    *batch, terms, columns = shape
    if not kind.startswith("mx"):
        made = {"w": _drawn(shape, -exponent[:, None], generator).to(DTYPES[kind])}
        return {**made, "w_scale": torch.tensor([0.37])} if kind.startswith("fp8") else made
    base = (127 - exponent[::BLOCK])[:, None]
    scales = (base + torch.randint(0, 2, (*batch, len(base), columns), generator=generator)).to(torch.uint8)
    if kind == "mxfp4":
        values = random_bytes((*batch, terms // 2, columns), generator)
    else:
        size = torch.randint(-1, 2, shape, generator=generator)  # of the e4m3 and e5m2 values, 0.5 to 4
        values = _drawn(shape, size, generator).to(DTYPES["fp8_" + kind.removeprefix("mxfp8_")])
    if ends and columns >= FEWEST_COLUMNS and len(base) > 1:
        places = {0: int(base.argmin()), 254: int(base.argmax()), 255: len(base) // 2}
        for column, byte in SCALE_COLUMNS.items():
            scales[..., places[byte], column] = byte
        within = BLOCK // 2 if kind == "mxfp4" else BLOCK
        large = values[..., places[254] * within : (places[254] + 1) * within, 3]
        large.copy_(large & 0xBB if kind == "mxfp4" else large.float().clamp(-1.5, 1.5))  # 0xBB: codes up to 1.5
    return {"w": values, "w_scale": scales}


def values(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    """Numbers (M, N) over the whole range of a dtype, some of them zero, with SPECIAL_ROWS from row 1 on."""
    end = HALF_RANGE[next(name for name, known in DTYPES.items() if known == dtype)]
    exponent = torch.randint(-end, end + 1, shape, generator=generator)
    x = _drawn(shape, exponent, generator)
    usual = torch.rand(shape, generator=generator) < 0.5
    x = torch.where(usual, torch.randn(shape, generator=generator) * 4, x)
    for row, name in enumerate(SPECIAL_ROWS if shape[0] >= 2 * len(SPECIAL_ROWS) else SPECIAL_ROWS[:1], 1):
        if row < shape[0]:
            x[row] = _special_row(name, x[row], dtype, exponent[row], generator)
            if name == "inf":
                x[row, :4] = INFINITIES[: x.shape[1]]
    return x.to(dtype)


def small(kind: str, values: Tensor, scales: Tensor | None) -> Tensor:
    """Which elements of a weight (..., K, N) may be taken for zero: subnormal, or of a block whose scale is."""
    if scales is None or not kind.startswith("mx"):
        return extremes.subnormal(values)
    decoded = decode_weight(kind, values, scales).abs()
    of_scale = (scales == 0).repeat_interleave(BLOCK, dim=-2)[..., : decoded.shape[-2], :]
    return of_scale | ((decoded > 0) & (decoded < extremes.SMALLEST_NORMAL[torch.bfloat16]))


def _drawn(shape: tuple[int, ...], exponent: Tensor, generator: Generator) -> Tensor:
    """Numbers of random sign in [1, 2) times 2^exponent, as float32, and some zeros of either sign."""
    size = (1 + torch.rand(shape, generator=generator)) * torch.exp2(exponent.float())
    size[torch.rand(shape, generator=generator) < ZEROS] = 0.0
    return size * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)


def _special_row(name: str, x: Tensor, dtype: torch.dtype, exponent: Tensor, generator: Generator) -> Tensor:
    """Rows (..., K) made of usual ones."""
    heavy = int(exponent.argmin())  # where weights are largest
    if name in ("nan", "inf"):
        place = torch.randint(x.shape[-1], (1,), generator=generator)
        return x.index_fill(-1, place, torch.nan if name == "nan" else torch.inf)
    if name == "zero":
        return torch.full_like(x, -0.0)
    if name == "subnormal":
        part = 0.1 + 0.8 * torch.rand(x.shape, generator=generator)
        return part * extremes.SMALLEST_NORMAL[dtype] * (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1)
    places = [heavy] if name == "overflow" else [heavy, min(heavy + 1, x.shape[-1] - 1)]
    return torch.zeros_like(x).index_fill(-1, torch.tensor(places), torch.finfo(dtype).max)


def mx_values(case: Case, generator: Generator) -> dict[str, Tensor]:
    """Inputs of the ``mxfp`` check.

    To quantise: blocks of all sizes, and blocks of zeros of either sign. Blocks with NaN, Inf or a scale below the
    smallest normal number are left out, for the library says that it does not care. To dequantise: all scale bytes and
    all finite values; for fp16 the scales that fp16 holds, since the library turns scales into the dtype first.
    """
    shape, axis, narrow = [case["batch"], case["rows"], case["columns"]], case["axis"], case["dtype"] == "fp16"
    blocks = [*shape]
    blocks[axis] = -(-shape[axis] // BLOCK)
    if case["direction"] == "down":
        low, high = (-5, 9) if narrow else (-105, 120)
        exponent = torch.randint(low, high + 1, blocks, generator=generator).float()
        size = torch.exp2(exponent) * (torch.rand(blocks, generator=generator) > ZEROS)
        x = torch.randn(shape, generator=generator) * torch.exp2(
            torch.randint(-9, 5, shape, generator=generator).float()
        )
        x = torch.where(torch.rand(shape, generator=generator) < ZEROS, -0.0, x.clamp(-64, 64))
        return {
            "x": (x * size.repeat_interleave(BLOCK, dim=axis).narrow(axis, 0, shape[axis])).to(DTYPES[case["dtype"]])
        }
    low, high = (113, 142) if narrow else (0, 255)
    scales = torch.randint(low, high + 1, blocks, generator=generator, dtype=torch.uint8)
    flat = scales.view(-1)
    ends = torch.tensor([low, low + 1, high - 1, high, 255], dtype=torch.uint8)[: len(flat)]
    flat[torch.randperm(len(flat), generator=generator)[: len(ends)]] = ends
    if case["format"] == "mxfp4":
        shape[axis] //= 2
        return {"values": random_bytes(tuple(shape), generator), "scales": scales}
    codes = random_bytes(tuple(shape), generator).view(DTYPES[case["format"].removeprefix("mx")])
    finite = torch.isfinite(codes.float())
    return {"values": torch.where(finite, codes.float(), 1.5).to(codes.dtype), "scales": scales}
