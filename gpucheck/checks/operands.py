"""Operands: making values of every dtype on the CPU, and decoding the bytes a kernel is given into float64.

The decoders are written from the formats' definitions (OCP Microscaling v1.0: e2m1, e8m0) and are independent of the
library under test.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from gpucheck.verify.bounds import EXACT_LIMIT, EXACT_LIMIT_FP8, Estimate

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
BLOCK = 32  # elements that share one mx scale
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
_NIBBLES = torch.cat([E2M1, -E2M1])
_OF_BYTE = _NIBBLES.repeat(16), _NIBBLES.repeat_interleave(16)  # the values of the low and of the high nibble
DECODED_AT_ONCE = 1 << 17  # codes: what is made of them on the way stays in the processor's cache
_POWERS = torch.exp2(torch.arange(256, dtype=torch.float64) - 127)  # of each e8m0 byte
_POWERS[255] = torch.nan
REACH = 2**31  # elements: an offset that 32 bits with a sign cannot hold
FREE_FOR_FAR = (
    48 << 30
)  # bytes of GPU memory: two operands of 16 bits that reach so far, copies, and a look at the gaps
MARGIN = 16  # columns of a wider tensor on each side of a view
EXACT_FP8_SCALES = (
    0.75,
    0.625,
)  # of activations and weights: an error of either shows, and sums of few bits keep exact
FP32_WIDE = 4095  # exact fp32 activations take 12 bits, one more than TF32 keeps


def signed_integers(shape: tuple[int, ...], low: int, high: int, generator: Generator) -> Tensor:
    """Integers of random sign with magnitude in [low, high], as float32."""
    narrow = (
        torch.int8 if high <= torch.iinfo(torch.int8).max else torch.int32
    )  # whatever holds them, they are the same
    magnitude = torch.randint(low, high + 1, shape, generator=generator, dtype=narrow)
    sign = torch.randint(0, 2, shape, generator=generator, dtype=narrow)
    return magnitude.mul_(sign.mul_(2).sub_(1)).to(torch.float32)


def random_bytes(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform uint8, drawn eight at a time."""
    count = math.prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return words.view(torch.uint8)[:count].view(shape)


def activations(kind: str, shape: tuple[int, ...], data: str, generator: Generator) -> Tensor:
    """Activations of ``shape`` (..., K): integers for exact data, standard normal otherwise."""
    if data == "normal":
        return torch.randn(shape, generator=generator).to(DTYPES[kind])
    if kind == "fp32":
        return signed_integers(shape, FP32_WIDE // 2 + 2, FP32_WIDE, generator).to(torch.float32)
    return signed_integers(shape, 1, _fp8_limit(shape[-1]) if kind.startswith("fp8") else 8, generator).to(DTYPES[kind])


def weights(kind: str, shape: tuple[int, ...], data: str, generator: Generator) -> dict[str, Tensor]:
    """A weight (..., K, N) as ``{"w": values}`` and, for fp8 and mx kinds, ``"w_scale"``.

    fp8: (1,) float32 scale. mx: e8m0 bytes (..., ceil(K/32), N). mxfp4: uint8 codes (..., K/2, N), even k low.
    """
    *batch, terms, columns = shape
    if kind.startswith("mx"):
        blocks = (*batch, -(-terms // BLOCK), columns)
        low, high = (126, 128) if data == "exact" else (121, 127)
        scales = torch.randint(low, high + 1, blocks, generator=generator, dtype=torch.uint8)
        if kind == "mxfp4":
            return {"w": random_bytes((*batch, terms // 2, columns), generator), "w_scale": scales}
        dtype = DTYPES["fp8_" + kind.removeprefix("mxfp8_")]
        values = (
            signed_integers(shape, 1, 8, generator) if data == "exact" else torch.randn(shape, generator=generator) * 2
        )
        return {"w": values.to(dtype), "w_scale": scales}
    if data == "normal":
        values = torch.randn(shape, generator=generator)
    else:
        limit = 8
        if kind == "fp32":
            limit = max(1, min(8, int(EXACT_LIMIT // (FP32_WIDE * max(terms, 1)))))
        elif kind.startswith("fp8"):
            limit = _fp8_limit(terms)
        values = signed_integers(shape, 1, limit, generator)
    made = {"w": values.to(DTYPES[kind])}
    if kind.startswith("fp8"):
        made["w_scale"] = torch.tensor([EXACT_FP8_SCALES[1] if data == "exact" else 0.37])
    return made


def within(tensor: Tensor) -> Tensor:
    """The same values as the middle columns of a wider tensor whose rows are whole multiples of MARGIN elements."""
    width = tensor.shape[-1]
    wide = torch.zeros((*tensor.shape[:-1], width + -width % MARGIN + 2 * MARGIN), dtype=tensor.dtype)
    return wide.narrow(-1, MARGIN, width).copy_(tensor)


def far_apart(tensor: Tensor, reach: int = REACH) -> Tensor:
    """The same values with the rows, or matrices, along the first axis so far apart that the last is ``reach`` away.

    Args:
        reach: elements; the memory in between holds nothing.
    """
    inner = tensor[0].contiguous()
    step = -(-reach // max(len(tensor) - 1, 1))
    stride = (max(step + -step % MARGIN, inner.numel()), *inner.stride())
    far = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return far.copy_(tensor)


def _fp8_limit(terms: int) -> int:
    return 2 if 4 * terms <= EXACT_LIMIT_FP8 else 1


def decode_scales(scales: Tensor) -> Tensor:
    """e8m0 bytes -> float64 powers of two, NaN for 255."""
    return _POWERS.index_select(0, scales.flatten().int()).reshape(scales.shape)


def decode_fp4(codes: Tensor, axis: int) -> Tensor:
    """Packed e2m1 codes -> float64, twice as long along ``axis``; the low nibble comes first."""
    axis %= codes.ndim
    index, shape = codes.flatten().int(), list(codes.shape)
    pairs = torch.empty((*shape[: axis + 1], 2, *shape[axis + 1 :]), dtype=torch.float64)
    for nibble, table in enumerate(_OF_BYTE):
        pairs.select(axis + 1, nibble).copy_(table.index_select(0, index).view(shape))
    return pairs.flatten(axis, axis + 1)


def _decode_mxfp4(codes: Tensor, factors: Tensor) -> Tensor:
    """Codes (..., K/2, N) and the factors (..., K/BLOCK, N) of whole blocks -> float64 (..., K, N)."""
    *batch, half, columns = codes.shape
    decoded = torch.empty((*batch, 2 * half, columns), dtype=torch.float64)
    blocks, factors = codes.reshape(-1, BLOCK // 2, columns), factors.reshape(-1, 1, columns)
    pairs = decoded.view(-1, BLOCK // 2, 2, columns)
    at_once = max(1, DECODED_AT_ONCE // (BLOCK // 2 * columns))
    for some, by, into in zip(blocks.split(at_once), factors.split(at_once), pairs.split(at_once), strict=True):
        index = some.flatten().int()
        for nibble, table in enumerate(_OF_BYTE):
            torch.mul(table.index_select(0, index).view(some.shape), by, out=into.select(2, nibble))
    return decoded


def decode_weight(kind: str, values: Tensor, scales: Tensor | None) -> Tensor:
    """The float64 weight (..., K, N) that the kernel computes with; per-tensor fp8 scales are not applied."""
    if not kind.startswith("mx"):
        return values.to(torch.float64)
    assert scales is not None
    factors, whole = decode_scales(scales), scales.shape[-2] * BLOCK == values.shape[-2] * (1 + (kind == "mxfp4"))
    if kind == "mxfp4" and whole and values.numel():
        return _decode_mxfp4(values, factors)
    decoded = decode_fp4(values, -2) if kind == "mxfp4" else values.to(torch.float64)
    if not whole:
        return decoded * factors.repeat_interleave(BLOCK, dim=-2)[..., : decoded.shape[-2], :]
    return decoded.unflatten(-2, (-1, BLOCK)).mul_(factors.unsqueeze(-2)).flatten(-3, -2)


def plain_weight(kind: str, values: Tensor, scales: Tensor | None) -> Tensor:
    """A weight (..., K, N) as plain torch multiplies it: in its own dtype, or in bf16, which holds fp8 and mx values.

    Works on any device. Per-tensor fp8 scales are not applied.
    """
    if not kind.startswith("mx"):
        return values.to(torch.bfloat16) if kind.startswith("fp8") else values
    assert scales is not None
    if kind == "mxfp4":
        table = _NIBBLES.to(values.device, torch.bfloat16)
        pairs = torch.stack((table[(values & 15).int()], table[(values >> 4).int()]), dim=-2)
        plain = pairs.flatten(-3, -2)
    else:
        plain = values.to(torch.bfloat16)
    factors = torch.exp2(scales.float() - 127).to(torch.bfloat16)
    return plain * factors.repeat_interleave(BLOCK, dim=-2)[..., : plain.shape[-2], :]


def size(*tensors: Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weight_unit(kind: str) -> float:
    """The power of two that divides every exact-data weight of :func:`weights`."""
    return {"mxfp4": 0.25, "mxfp8_e4m3": 0.5, "mxfp8_e5m2": 0.5}.get(kind, 1.0)


def as_estimate(value: Tensor, data: str, unit: float = 1.0) -> Estimate:
    """An operand as the start of a reference: no error yet, and for normal data free to gain some."""
    value = value.to(torch.float64)
    return Estimate(value, None if data == "exact" else value.new_zeros(()).expand_as(value), unit)
