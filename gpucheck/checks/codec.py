"""Our own microscaling codec on the CPU, the reference of the library's; formats as in OCP Microscaling v1.0."""

from __future__ import annotations

import torch
from torch import Tensor

from gpucheck.checks.operands import BLOCK, DTYPES, E2M1, decode_fp4, decode_scales

LARGEST = {"mxfp4": 6.0, "mxfp8_e4m3": 448.0, "mxfp8_e5m2": 57344.0}


def decode(values: Tensor, scales: Tensor, axis: int) -> Tensor:
    """Codes (fp4 packed in uint8, or fp8) and e8m0 scales of blocks of 32 along ``axis`` -> float64."""
    plain = decode_fp4(values, axis) if values.dtype == torch.uint8 else values.double()
    factors = decode_scales(scales).repeat_interleave(BLOCK, dim=axis).narrow(axis, 0, plain.shape[axis])
    return plain * factors


def encode(x: Tensor, kind: str, axis: int, rounding: str) -> tuple[Tensor, Tensor]:
    """Quantises float64 values in blocks of 32 along ``axis``; the scale is the smallest power of two that clips none.

    Args:
        rounding: how fp4 ties go: ``"half-away"`` or ``"even"``; fp8 always rounds ties to even.

    Returns:
        uint8 codes (fp4: half as long along ``axis``) and uint8 e8m0 scales.
    """
    moved = x.movedim(axis, -1)
    length = moved.shape[-1]
    padded = torch.nn.functional.pad(moved, (0, -length % BLOCK)).unflatten(-1, (-1, BLOCK))
    ratio = (padded.abs().amax(-1).float() / LARGEST[kind]).double()  # the format's rule is stated on fp32 scales
    fraction, exponent = torch.frexp(ratio)
    exponent = torch.where(fraction == 0.5, exponent - 1, exponent)  # ceil(log2 ratio)
    stored = torch.where(ratio == 0, 0, exponent + 127)
    factor = torch.where(ratio == 0, 0.0, torch.exp2(-exponent.double()))
    scaled = (padded * factor[..., None]).flatten(-2)[..., :length]
    if kind == "mxfp4":
        nibbles = _fp4_codes(scaled, rounding).unflatten(-1, (-1, 2))
        codes = nibbles[..., 0] | (nibbles[..., 1] << 4)
    else:
        codes = scaled.float().to(DTYPES["fp8_" + kind.removeprefix("mxfp8_")]).view(torch.uint8)
    return codes.to(torch.uint8).movedim(-1, axis), stored.to(torch.uint8).movedim(-1, axis)


def _fp4_codes(x: Tensor, rounding: str) -> Tensor:
    """e2m1 codes 0 to 15 of float64 values, as int64."""
    middles = (E2M1[:-1] + E2M1[1:]) / 2
    size = x.abs().contiguous()
    below, above = torch.bucketize(size, middles, right=False), torch.bucketize(size, middles, right=True)
    # below != above exactly at a tie between codes `below` and `below + 1`
    code = above if rounding == "half-away" else torch.where(below % 2 == 0, below, above)
    return code | (torch.signbit(x).long() << 3)
