"""What comes out where operands lie at the ends of their formats: NaN, Inf, sums that overflow, terms that vanish.

Bounds of finite sums are those of :mod:`gpucheck.verify.bounds`. Here is what may come on top of them, element by
element, each for a reason with a name:

* NAN_OPERAND: NaN times anything, zero too, is NaN (IEEE 754); it stays in its row or column.
* INF_OPERAND: Inf times a number is Inf, times zero NaN; Inf less Inf is NaN (IEEE 754).
* OVERFLOW: a sum past the largest fp32 number is Inf. Where its terms of one sign pass that number and the sum does
  not, the order decides, which is nobody's to promise: the sum, Inf, or, if those of both signs pass it, NaN.
* SUBNORMAL: "handling of subnormal inputs" of ``mma`` is unspecified (PTX ISA, on its floating point operations), and a
  scale byte 0, which is 2^-127, is one as well: such a term may be taken for zero, and Inf times it for NaN.
* NAN_SCALE: a scale byte 255 is NaN (OCP Microscaling v1.0); Triton leaves that out where ``dot_scaled`` is asked for
  fast math, as the library does, and the byte is Inf then: what comes out is not finite.
* NAN_CLAMPED: the smaller of NaN and a number is that number for ``min.f32`` (PTX ISA) and NaN elsewhere; a kernel that
  clamps without asking ``tl.minimum`` to propagate NaN promises neither. Between two limits NaN becomes the one that it
  meets first: the upper one where the smaller is taken first, the lower one in ``tl.clamp``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpucheck.verify import bounds
from gpucheck.verify.bounds import Estimate

INF, MINUS_INF, NAN = 1, 2, 4
ANY = INF | MINUS_INF | NAN
LARGEST = 2.0**128 - 2.0**104  # of fp32
REACHED = LARGEST * (1 - 2.0**-10)  # sums of one sign from here on may round to Inf on the way
SMALLEST_NORMAL = {
    torch.bfloat16: 2.0**-126,
    torch.float32: 2.0**-126,
    torch.float16: 2.0**-14,
    torch.float8_e4m3fn: 2.0**-6,
    torch.float8_e5m2: 2.0**-14,
}


def subnormal(values: Tensor) -> Tensor:
    """Which elements of a tensor are subnormal numbers of its dtype: bool, of its shape."""
    size = values.double().abs()
    return (size > 0) & (size < SMALLEST_NORMAL[values.dtype])


def among(got: Tensor, also: Tensor) -> Tensor:
    """Which elements of ``got`` are one of the values that ``also`` allows."""
    found = torch.isnan(got) & (also & NAN > 0)
    return found | ((got == torch.inf) & (also & INF > 0)) | ((got == -torch.inf) & (also & MINUS_INF > 0))


def infinite(value: Tensor) -> Tensor:
    """The flags of values that are not finite: each is right as it is."""
    flags = torch.where(value == torch.inf, INF, 0) + torch.where(value == -torch.inf, MINUS_INF, 0)
    return (flags + torch.where(torch.isnan(value), NAN, 0)).to(torch.uint8)


def product(
    x: Tensor, w: Tensor, small_x: Tensor, small_w: Tensor, *, operands: torch.dtype | None = None
) -> tuple[Estimate, Tensor]:
    """``x @ w`` accumulated in fp32, and the flags of what its elements may be as well.

    Args:
        x: (..., M, K) float64.
        w: (..., K, N) float64; NaN where its scale byte is 255, never infinite.
        small_x: bool, which elements of x may be taken for zero.
        small_w: bool, which elements of w may be taken for zero.
        operands: see :func:`gpucheck.verify.bounds.product`.
    """
    left, right = (torch.where(torch.isfinite(each), each, 0.0) for each in (x, w))
    free = torch.zeros((), dtype=torch.float64)
    known = (Estimate(part, free.expand_as(part)) for part in (left, right))
    finite = bounds.product(*known, operands=operands)
    assert finite.error is not None
    error = finite.error + (left.abs() * small_x) @ right.abs() + left.abs() @ (right.abs() * small_w)
    error = error + x.shape[-1] * bounds.SMALLEST_NORMAL
    size = left.abs() @ right.abs()
    up, down = (size + finite.value) / 2 >= REACHED, (size - finite.value) / 2 >= REACHED
    also = INF * up + MINUS_INF * down + NAN * (up & down)
    value = torch.where(finite.value.abs() - error > LARGEST, finite.value.sign() * torch.inf, finite.value)
    value, also = _with_infinite(x, right, small_w, value, also)
    column = torch.isnan(w).any(-2, keepdim=True)
    also = torch.where(column, ANY, also)
    row = torch.isnan(x).any(-1, keepdim=True)
    also = torch.where(row, NAN, also)
    value = torch.where(row | column, torch.nan, value)
    return settled(Estimate(value, error)), also.to(torch.uint8) | infinite(value)


def _with_infinite(x: Tensor, w: Tensor, small_w: Tensor, value: Tensor, also: Tensor) -> tuple[Tensor, Tensor]:
    """Sums in which infinite elements of x take part."""
    sign = torch.where(torch.isinf(x), x.sign(), 0.0)
    if not bool(sign.any()):
        return value, also
    up = sign.clamp_min(0) @ (w > 0).double() + (-sign).clamp_min(0) @ (w < 0).double() > 0
    down = sign.clamp_min(0) @ (w < 0).double() + (-sign).clamp_min(0) @ (w > 0).double() > 0
    undefined = (sign.abs() @ (w == 0).double() > 0) | (up & down)
    also = also + NAN * ((sign.abs() @ small_w.double() > 0) & (also & NAN == 0))
    value = torch.where(up, torch.inf, torch.where(down, -torch.inf, value))
    return torch.where(undefined, torch.nan, value), also


def swiglu(x: Tensor, alpha: float, limit: float) -> tuple[list[Estimate], Tensor]:
    """See :func:`gpucheck.verify.bounds.swiglu`: NaN may come out as NaN or as what a limit in its place gives.

    A gate of -Inf gives NaN, as Inf over Inf.

    Returns:
        One estimate for each of :func:`nan_clamped`, and the flags, which they share.
    """
    found = [settled(bounds.swiglu(Estimate(y, None), alpha, limit)) for y in nan_clamped(x, limit)]
    nan = torch.isnan(x[..., 0::2]) | torch.isnan(x[..., 1::2])
    return found, infinite(found[0].value) | torch.where(nan, NAN, 0).to(torch.uint8)


def nan_clamped(x: Tensor, limit: float) -> list[Tensor]:
    """What clamps may make of NaN in ``x`` (..., 2 N), gates in even columns and what they multiply in odd ones.

    A gate has an upper limit alone; the other is clamped from both sides, and NaN becomes either limit.
    """
    nan, odd = torch.isnan(x), torch.arange(x.shape[-1], device=x.device) % 2 == 1
    return [torch.where(nan, torch.where(odd, other, limit), x) for other in (limit, -limit)]


def settled(x: Estimate) -> Estimate:
    """Without the errors of what is not finite, which is right as it is or not at all."""
    return x if x.error is None else Estimate(x.value, torch.where(torch.isfinite(x.value), x.error, 0.0), x.unit)


def rows_of_nan(x: Estimate, rows: Tensor) -> tuple[Estimate, Tensor]:
    """An estimate whose ``rows``, bool over all axes but the last, are NaN, and its flags."""
    where = rows[..., None].expand(x.value.shape)
    value = x.value.masked_fill(where, torch.nan)
    error = torch.zeros_like(value) if x.error is None else x.error.masked_fill(where, 0.0)
    return Estimate(value, error), infinite(value)


def rounded(x: Estimate, also: Tensor, dtype: torch.dtype) -> tuple[Estimate, Tensor]:
    """Stored as ``dtype`` between two kernels, see :func:`gpucheck.verify.bounds.rounded`; what is too large is Inf."""
    assert x.error is not None
    kept = bounds.rounded(x, dtype)
    assert kept.error is not None
    finite = torch.isfinite(x.value)
    near = bounds.round_to(dtype, x.value - x.value.sign() * x.error)
    far = bounds.round_to(dtype, x.value + x.value.sign() * x.error)
    open_end = finite & torch.isinf(far) & torch.isfinite(near)  # Inf or the largest number
    value = torch.where(open_end, near, kept.value)
    error = torch.where(open_end, torch.finfo(dtype).max - near.abs(), kept.error)
    flags = torch.where(open_end, infinite(far), infinite(value))
    return settled(Estimate(value, error)), also | flags


def summed(x: Estimate, also: Tensor, dim: int) -> tuple[Estimate, Tensor]:
    """The sum of a few terms over ``dim``, see :func:`gpucheck.verify.bounds.summed`: uncertain as one of them."""
    total = bounds.summed(x, dim)
    uncertain = (also != infinite(x.value)).any(dim)
    return settled(total), torch.where(uncertain, ANY, infinite(total.value)).to(torch.uint8)
