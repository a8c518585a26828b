"""What lies between products: sums of few terms, scales, roundings, activations, norms, rope, quantised operands."""

from __future__ import annotations

import torch
from torch import Tensor

from gpucheck.verify.bounds.estimate import (
    ELEMENTARY,
    HALF_ULP,
    Estimate,
    largest_of,
    require_exact,
    round_to,
    rounding_deviation,
    tolerance,
    ulp,
)
from gpucheck.verify.bounds.sums import product, summing

STEEP = 128.0  # alpha of a swiglu: the exponential of a whole number times that is 0, 1 or infinite in fp32


def add(x: Estimate, term: Tensor) -> Estimate:
    """``x + term`` in fp32, where exact data adds whole units; cancellation keeps the error of the larger operand."""
    value = x.value + term
    if x.error is None:
        require_exact(largest_of(value), x.unit)
        return Estimate(value, None, x.unit)
    return Estimate(value, x.error + 2.0**-24 * (x.value.abs() + term.abs() + value.abs()))


def scale(x: Estimate, factor: Tensor) -> Estimate:
    """``x * factor`` in fp32; exact data asks for factors of so few bits that fp32 holds the products."""
    value = x.value * factor
    if x.error is None:
        step = _last_bit(factor)
        if not bool((step > 0).all() & torch.isfinite(factor).all()):
            raise ValueError("exact data is scaled by finite factors other than zero")
        finest = float(step.min()) if factor.numel() else 1.0
        require_exact(float((value.abs() / step).max()) if value.numel() else 0.0, x.unit)
        return Estimate(value, None, x.unit * min(1.0, finest))
    return Estimate(value, x.error * factor.abs() + 2.0**-24 * value.abs())


def _last_bit(value: Tensor) -> Tensor:
    """The largest power of two that divides float64 values; 0 for 0."""
    significand, exponent = torch.frexp(value)
    whole = (significand * 2.0**53).to(torch.int64)
    return (whole & -whole).double() * torch.exp2(exponent.double() - 53)


def times(x: Estimate, factor: Estimate) -> Estimate:
    """``x * factor`` in fp32, both with errors of their own."""
    assert x.error is not None and factor.error is not None
    value = x.value * factor.value
    carried = x.error * (factor.value.abs() + factor.error) + x.value.abs() * factor.error
    return Estimate(value, carried + 2.0**-24 * value.abs())


def rounded(x: Estimate, dtype: torch.dtype) -> Estimate:
    """A documented rounding point: ``x`` stored as ``dtype`` between two kernels.

    A right value may fall on the other side of a rounding boundary only where ``value +- error`` straddles it, so the
    new error is the spread of the rounded interval: zero for most elements, one ulp for a few.
    """
    value = round_to(dtype, x.value)
    if x.error is None:
        return Estimate(value, None, x.unit)
    low, high = round_to(dtype, x.value - x.error), round_to(dtype, x.value + x.error)
    return Estimate(value, torch.maximum(high - value, value - low))


def either(x: Estimate, dtype: torch.dtype | None) -> Estimate:
    """``x`` as it is or stored as ``dtype``: a place within an operation where right callers differ; None: as it is."""
    if dtype is None:
        return x
    assert x.error is not None
    return Estimate(x.value, tolerance(dtype, x.value, x.error))


SIGMAS = 6.0


def in_parts(x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """What a product errs by whose terms are summed in parts that are stored as ``dtype`` and added in fp32, as
    BLAS libraries may.

    Each part S rounds by at most half an ulp, uniformly, so the variance of their sum is that of all S^2, which for
    terms of random sign is E^2 = sum x^2 w^2 however many parts there are: 6 deviations.

    Args:
        x: (..., M, K) float64.
        w: (K, N) float64.
    """
    energy = torch.sqrt(x.square() @ w.square())
    return SIGMAS * rounding_deviation(dtype) * energy


def summed(x: Estimate, dim: int) -> Estimate:
    """Sum of a few terms over ``dim`` in fp32, any order."""
    value = x.value.sum(dim)
    if x.error is None:
        require_exact(float(x.value.abs().sum(dim).max()) if value.numel() else 0.0, x.unit)
        return Estimate(value, None, x.unit)
    terms = x.value.shape[dim]
    return Estimate(value, x.error.sum(dim) + 2.0**-24 * (terms - 1) * x.value.abs().sum(dim))


def swiglu(x: Estimate, alpha: float, limit: float) -> Estimate:
    """gpt-oss swiglu of interleaved columns (..., N) -> (..., N/2): ``g * sigmoid(alpha g) * (l + 1)``.

    Even columns are the gate g, clamped from above; odd ones the linear part l, clamped both ways.
    """
    gate, linear = x.value[..., 0::2].clamp(max=limit), x.value[..., 1::2].clamp(-limit, limit)
    activated = gate * torch.sigmoid(alpha * gate)
    value = activated * (linear + 1)
    # the exponential, relative; then a product and a sum of activated * l + activated, which cancel near l = -1
    own = ELEMENTARY * (4 + (alpha * gate).abs()) * value.abs() + 2.0**-23 * activated.abs() * (linear.abs() + 1)
    own = own + 2.0**-120
    if x.error is None:
        return Estimate(value, own)
    gate_error, linear_error = x.error[..., 0::2], x.error[..., 1::2]
    slope = 1.1 * gate_error  # |d/dg g sigmoid(alpha g)| < 1.1
    carried = slope * ((linear + 1).abs() + linear_error) + activated.abs() * linear_error
    return Estimate(value, own + carried)


def ramp(x: Estimate, limit: float) -> Estimate:
    """:func:`swiglu` of whole numbers with alpha STEEP, whose sigmoid is then 0, 1/2 or 1: ``max(g, 0) * (l + 1)``."""
    if x.error is not None or x.unit < 1:
        raise ValueError("only the swiglu of exact data that is whole is a ramp")
    gate, linear = x.value[..., 0::2].clamp(0, limit), x.value[..., 1::2].clamp(-limit, limit)
    return Estimate(gate * (linear + 1), None)


def reduced(parts: Tensor, dim: int, dtype: torch.dtype) -> Estimate:
    """The sum over ranks that a collective stores as ``dtype``, in any order.

    Each addition but the last may round its sum to ``dtype``; no such sum is larger than all magnitudes together. One
    in fp32, rounded once more at the end, loses less.

    Args:
        parts: float64 values of ``dtype``, the ranks along ``dim``.
    """
    count = parts.shape[dim]
    size = parts.abs().sum(dim)
    between = max(0, count - 2) * ulp(dtype, size * (1 + count * 2.0**-8)) / 2
    return Estimate(parts.sum(dim), between + (count - 1) * 2.0**-24 * size)


SHORTEST = 32  # terms that a kernel takes at once
LARGEST_E4M3 = 448.0


def block_scaled(x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor, block: int, unit: float | None) -> Estimate:
    """``x @ w`` of fp8 operands whose terms have a scale for each ``block`` of them, added up block by block in fp32.

    Each block's sum is multiplied by both of its scales; a kernel may split it into parts of SHORTEST terms or more.

    Args:
        x: (M, K) float64, without its scales.
        x_scale: (M, ceil(K / block)).
        w: (K, N) float64, without its scales.
        w_scale: (ceil(K / block), N).
        unit: of exact data, whose scales are powers of two; None: other data.
    """
    none = None if unit is not None else x.new_zeros(())
    parts = []
    for number, terms in enumerate(torch.arange(x.shape[1]).split(block)):
        a, b = x[:, terms], w[terms]
        start = (Estimate(each, None if none is None else none.expand_as(each), unit or 1.0) for each in (a, b))
        part = product(*start, operands=torch.float8_e4m3fn)
        parts.append(scale(scale(part, x_scale[:, number, None]), w_scale[number]))
    values = torch.stack([part.value for part in parts])
    finest = min(part.unit for part in parts)
    if none is None:
        return summed(Estimate(values, None, finest), dim=0)
    made = summed(Estimate(values, torch.stack([part.error for part in parts if part.error is not None])), dim=0)
    assert made.error is not None
    made.error.add_(values.abs().sum(0), alpha=HALF_ULP * (-(-x.shape[1] // SHORTEST)))
    return made


def group_scale(largest: Tensor) -> Estimate:
    """The scale of groups of e4m3 by their largest magnitudes: divided by LARGEST_E4M3, or times its reciprocal."""
    value = largest / LARGEST_E4M3
    return Estimate(value, ELEMENTARY * value)


def quantised(x: Tensor, scales: Tensor, exact: bool) -> Estimate:
    """``x / scale`` as e4m3 at most LARGEST_E4M3; the quotient may come of a fast division."""
    value = (x / scales).clamp(-LARGEST_E4M3, LARGEST_E4M3)
    return rounded(Estimate(value, None if exact else ELEMENTARY * value.abs()), torch.float8_e4m3fn)


ALL_OF_IT = 18.0  # from there on sigmoid is 1 in fp32


def silu_and_mul(x: Estimate, between: torch.dtype | None = None) -> Estimate:
    """``silu(g) * u`` of columns (..., N) -> (..., N/2), whose first half is the gate g and whose second half is u.

    Exact data has gates of at least ALL_OF_IT, which silu returns as they are.

    Args:
        between: what silu(g) is stored as before the product; None: it stays in fp32.

    Raises:
        ValueError: exact data has a smaller gate.
    """
    gate, up = x.value.chunk(2, -1)
    if x.error is None:
        if gate.numel() and float(gate.min()) < ALL_OF_IT:
            raise ValueError(f"exact data has a gate of {float(gate.min()):g}, under {ALL_OF_IT:g}: silu would round")
        return Estimate(gate * up, None, x.unit * x.unit)
    gate_error, up_error = x.error.chunk(2, -1)
    activated = gate * torch.sigmoid(gate)
    # the exponential, relative; |d/dg silu(g)| < 1.1
    own = ELEMENTARY * (4 + gate.abs()) * activated.abs() + 2.0**-120
    silu = Estimate(activated, own + 1.1 * gate_error)
    return times(silu if between is None else rounded(silu, between), Estimate(up, up_error))


def renormalised(p: Estimate) -> Estimate:
    """``p / sum(p)`` over the last axis of a few positive weights, in fp32.

    The quotient errs as its parts do, then by the sum and the division.
    """
    assert p.error is not None
    total = p.value.sum(-1, keepdim=True)
    carried = p.error / p.value + p.error.sum(-1, keepdim=True) / total
    value = p.value / total
    return Estimate(value, (carried + HALF_ULP * p.value.shape[-1] + ELEMENTARY) * value)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, *, stored: torch.dtype | None = None) -> Estimate:
    """``x * weight / sqrt(mean(x^2) + epsilon)`` over the last axis of float64, computed in fp32.

    The sum of n squares errs as :func:`summing` says, and at most by n half ulps; the root halves that. Then the
    reciprocal root, its product with x and that with the weight.

    Args:
        stored: the caller may have stored x as this dtype only beside taking the norm of it, so that x errs by half an
            ulp, and may store rows before they are multiplied by the weight; None: it does neither.
    """
    terms, total = x.shape[-1], x.square().sum(-1, keepdim=True)
    normed = x * torch.rsqrt(total / terms + epsilon)
    energy = x.square().square().sum(-1, keepdim=True).sqrt()
    halved = summing(terms, total, energy).clamp_max(HALF_ULP * terms * total) / (2 * (total + terms * epsilon))
    own = (halved + ELEMENTARY + 2.0**-23) * normed.abs()
    if stored is None:
        return Estimate(normed * weight, own * weight.abs())
    half = ulp(stored, x.abs()) / 2
    carried = half * torch.rsqrt(total / terms + epsilon)
    carried = carried + normed.abs() * (x.abs() * half).sum(-1, keepdim=True) / (total + terms * epsilon)
    return scale(either(Estimate(normed, own + carried), stored), weight)


ANGLE = 2.0**-21  # of an angle that a caller computes itself: its frequency and the angle are rounded to fp32


def rope(
    x: Tensor, cos: Tensor, sin: Tensor, *, stored: torch.dtype | None = None, angle: Tensor | None = None
) -> Estimate:
    """Rotary embedding of float64 (..., D) in fp32: coordinates i and i + D/2 turn together by an angle.

    cos, sin: (..., D/2), exactly as the kernel sees them. Each result is a sum of two rounded products.

    Args:
        stored: cosines, sines and products may be stored as this dtype; None: they are not.
        angle: the largest one, where the caller computes cosines and sines itself; broadcasts with ``cos``.
    """
    first, second = x.chunk(2, -1)
    swapped = torch.cat([second, first], -1)
    factors = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    value, size = x * factors[0] + swapped * factors[1], (x * factors[0]).abs() + (swapped * factors[1]).abs()
    error = 2.0**-23 * size
    if angle is not None:
        error = error + ANGLE * angle * (x.abs() + swapped.abs())
    if stored is not None:
        for operand, factor in zip((x, swapped), factors, strict=True):
            table, term = ulp(stored, factor.abs()) / 2, ulp(stored, (operand * factor).abs()) / 2
            error = error + operand.abs() * table + term
    return Estimate(value, error)


def spread(value: Tensor, members: Tensor) -> Estimate:
    """A value with what many small errors on the way make of it, measured where no bound follows through.

    Args:
        value: float64 (..., N), computed with roundings at the documented places.
        members: (M, ..., N), the same computed M times, each number on the way anywhere within its own tolerance.

    The error is SIGMAS standard deviations, which all N numbers of a row share.
    """
    deviation = (members - value).square().mean((0, -1)).sqrt()
    return Estimate(value, (SIGMAS * deviation)[..., None].expand(value.shape))
