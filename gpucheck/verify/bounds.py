"""Every bound of the project: how far a right result may lie from the float64 reference, and why.

A reference is built as an :class:`Estimate`: a float64 value together with the largest absolute error that a right
computation with fp32 accumulation may have made so far. Each operation below carries the error of its operands through
and adds its own. An ``error`` of None means exact data: no operation may round, so any right computation gives the
same bits. An unknown dtype raises; nothing falls back to a default tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_LIMIT = 2.0**24  # integers below this are exact in fp32
EXACT_LIMIT_FP8 = 2.0**11  # Hopper's fp8 tensor cores keep about 13 bits of a partial sum
ACCUMULATION = 2.0**-23 / 16  # per term of a sum, relative to |R| + sqrt(sum x^2 w^2)
FP8_TERMS = 32  # products that Hopper's fp8 tensor cores add to the running sum in one step
FP8_TRUNCATION = 2.0**-13  # a step cuts its addends off at this part of the largest of them
LARGEST_SQUARED = 2.0**50  # sums of squares of smaller numbers stay far within fp32
ELEMENTARY = 2.0**-22  # one fast exponential and one fast division, a few fp32 ulps

_SIGNIFICAND = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126)}


@dataclass(frozen=True)
class Estimate:
    """A reference value and the error a right computation may have.

    value: float64, any shape. error: float64 >= 0 of the same shape, or None for exact data.
    unit: for exact data, the power of two that divides every value; operations check that fp32 holds their sums.
    """

    value: Tensor
    error: Tensor | None
    unit: float = 1.0

    @property
    def exact(self) -> bool:
        return self.error is None

    def flat(self) -> Estimate:
        """The same numbers in one axis."""
        return self.reshaped(-1)

    def reshaped(self, *shape: int) -> Estimate:
        """The same numbers in another shape."""
        return Estimate(self.value.reshape(shape), None if self.error is None else self.error.reshape(shape), self.unit)


def _require_exact(largest: float, unit: float, limit: float = EXACT_LIMIT) -> None:
    if largest > limit * unit:
        raise ValueError(f"exact data may reach {largest / unit:g} units, over {limit:g}: sums could round")


def ulp(dtype: torch.dtype, magnitude: Tensor) -> Tensor:
    """Distance between neighbouring values of ``dtype`` at ``magnitude`` (float64, >= 0), subnormals included."""
    if dtype not in _SIGNIFICAND:
        raise ValueError(f"no ulp is known for {dtype}; known: {', '.join(str(d) for d in _SIGNIFICAND)}")
    bits, lowest = _SIGNIFICAND[dtype]
    exponent = torch.frexp(magnitude)[1].to(torch.float64) - 1
    exponent = exponent.masked_fill(magnitude == 0, lowest).clamp_min(lowest)
    return torch.exp2(exponent - (bits - 1))


def tolerance(dtype: torch.dtype, value: Tensor, error: Tensor) -> Tensor:
    """Largest ``|output - value|`` of a right output stored as ``dtype``: half an ulp of rounding plus ``error``."""
    return ulp(dtype, value.abs() + error) / 2 + error


def round_to(dtype: torch.dtype, value: Tensor) -> Tensor:
    """float64 -> ``dtype`` -> float64 with a single rounding to nearest even.

    torch rounds float64 to bf16 and fp16 by way of float32, which rounds twice; rounding the float32 step to odd
    keeps the information that the second rounding needs.
    """
    if dtype == torch.float32:
        return value.to(torch.float32).to(torch.float64)
    if dtype not in _SIGNIFICAND:
        raise ValueError(f"rounding to {dtype} is not defined here")
    nearest = value.to(torch.float32)
    inexact = (nearest.to(torch.float64) != value) & torch.isfinite(nearest)
    toward_zero = torch.where(
        nearest.to(torch.float64).abs() > value.abs(), torch.nextafter(nearest, torch.zeros_like(nearest)), nearest
    )
    odd = (toward_zero.view(torch.int32) | 1).view(torch.float32)
    return torch.where(inexact, odd, nearest).to(dtype).to(torch.float64)


def product(x: Estimate, w: Estimate, *, fp8: bool = False) -> Estimate:
    """``x @ w`` accumulated in fp32.

    Args:
        x: (..., M, K).
        w: (..., K, N), exactly as the kernel sees it after dequantisation; its own error is taken as none.
        fp8: both operands are fp8, whose sums Hopper keeps shorter: see :func:`_fp8_accumulation`.
    """
    value = x.value @ w.value
    terms = w.value.shape[-2]
    if x.error is None and w.error is None:
        largest = float(x.value.abs().max() * w.value.abs().max()) * terms if value.numel() and terms else 0.0
        _require_exact(largest, x.unit * w.unit, EXACT_LIMIT_FP8 if fp8 else EXACT_LIMIT)
        return Estimate(value, None, x.unit * w.unit)
    kept = _holds_squares(x.value, w.value)
    wide = w.value.to(kept)
    energy = torch.sqrt((x.value.to(kept).square() @ wide.square()).double())
    relative = _fp8_accumulation(terms) if fp8 else ACCUMULATION * _counted(terms)
    error = relative * (value.abs() + energy)
    if x.error is not None and bool(x.error.any()):
        error = error + (x.error.to(kept) @ wide.abs()).double()
    return Estimate(value, error)


def _holds_squares(*operands: Tensor) -> torch.dtype:
    """float32, which is fast, where it holds the squares of operands; else float64."""
    largest = max((float(operand.abs().max()) for operand in operands if operand.numel()), default=0.0)
    return torch.float32 if largest < LARGEST_SQUARED else torch.float64


def _counted(terms: int) -> float:
    """How many terms a sum counts for at ACCUMULATION each.

    K additions in fp32, one after the other, stray from the right sum with a standard deviation that grows like K, the
    bound like K^1.5. It is wide enough, 9 standard deviations, from K = 144 on; shorter sums count as longer.
    """
    return max(terms, 16, 12 * math.sqrt(terms))


def _fp8_accumulation(terms: int) -> float:
    """Error of an fp8 sum on Hopper, relative to ``|R| + sqrt(sum x^2 w^2)``.

    Each step cuts 33 addends, the running sum among them, towards zero: a product loses a uniform part of one unit with
    the sign of the product, so the loss of a step spreads by sqrt(33/12) units, and those of all steps add up like a
    random walk, taken at 6 sigma; the running sum itself loses half a unit a step, always towards zero.
    """
    steps = max(1, -(-terms // FP8_TERMS))
    return FP8_TRUNCATION * (6 * (steps * (FP8_TERMS + 1) / 12) ** 0.5 + steps / 2)


def add(x: Estimate, term: Tensor) -> Estimate:
    """``x + term`` in fp32, where exact data adds whole units; cancellation keeps the error of the larger operand."""
    value = x.value + term
    if x.error is None:
        _require_exact(float(value.abs().max()) if value.numel() else 0.0, x.unit)
        return Estimate(value, None, x.unit)
    return Estimate(value, x.error + 2.0**-24 * (x.value.abs() + term.abs() + value.abs()))


def scale(x: Estimate, factor: Tensor) -> Estimate:
    """``x * factor`` in fp32; exact data asks for powers of two."""
    value = x.value * factor
    if x.error is None:
        if not bool((torch.frexp(factor)[0].abs() == 0.5).all()):
            raise ValueError("exact data is scaled by powers of two only")
        smallest = float(factor.abs().min()) if factor.numel() else 1.0
        return Estimate(value, None, x.unit * min(1.0, smallest))
    return Estimate(value, x.error * factor.abs() + 2.0**-24 * value.abs())


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


def summed(x: Estimate, dim: int) -> Estimate:
    """Sum of a few terms over ``dim`` in fp32, any order."""
    value = x.value.sum(dim)
    if x.error is None:
        _require_exact(float(x.value.abs().sum(dim).max()) if value.numel() else 0.0, x.unit)
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


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Estimate:
    """``x * weight / sqrt(mean(x^2) + epsilon)`` over the last axis of float64, computed in fp32.

    A sum of n squares is off by at most n half ulps, in any order, and the root halves that; then the reciprocal root,
    its product with x and that with the weight.
    """
    value = x * weight * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return Estimate(value, (x.shape[-1] * 2.0**-25 + ELEMENTARY + 2.0**-23) * value.abs())


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Estimate:
    """Rotary embedding of float64 (..., D) in fp32: coordinates i and i + D/2 turn together by an angle.

    cos, sin: (..., D/2), exactly as the kernel sees them. Each result is a sum of two rounded products.
    """
    first, second = x.chunk(2, -1)
    value = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    size = torch.cat([(first * cos).abs() + (second * sin).abs(), (second * cos).abs() + (first * sin).abs()], -1)
    return Estimate(value, 2.0**-23 * size)


SIGMAS = 6.0


def spread(value: Tensor, members: Tensor) -> Estimate:
    """A value with what many small errors on the way make of it, measured where no bound follows through.

    Args:
        value: float64 (..., N), computed with roundings at the documented places.
        members: (M, ..., N), the same computed M times, each number on the way anywhere within its own tolerance.

    The error is SIGMAS standard deviations, which all N numbers of a row share.
    """
    deviation = (members - value).square().mean((0, -1)).sqrt()
    return Estimate(value, (SIGMAS * deviation)[..., None].expand(value.shape))


ONE_HOT = 200.0  # in powers of two: a weight below 2^-200 of the largest is zero in fp32
SMALLEST_NORMAL = 2.0**-126  # of fp32; what is smaller may be flushed to zero


def softmax(logits: Tensor, *, parts: int = 1, exact: bool = False) -> Estimate:
    """Softmax over the last axis of (..., n) float64 logits, computed in fp32; a row of nothing but -inf gives zeros.

    To first order a weight moves by its own relative error less that of the normaliser, which is the mean of those of
    all weights. A weight carries four fp32 roundings of its distance to the largest in its exponent and ELEMENTARY for
    the exponential, once more at each rise of the running maximum, which later parts of the row may bring; the
    quotient carries ELEMENTARY. The normaliser adds n positive terms: half an ulp each, or the error of a product
    (see :func:`product`) if that is less.

    Args:
        parts: how many pieces of a row may be taken one after the other.
        exact: the largest logits of each row must be 1, 2, 4, ... and alone in having weight in fp32.

    Raises:
        ValueError: ``exact`` is asked for and a row does not allow it.
    """
    top = logits.amax(-1, keepdim=True)
    span = torch.where(logits.isneginf(), torch.inf, top - logits)
    weights = torch.exp(-span)
    total = weights.sum(-1, keepdim=True).clamp_min(1)  # 0 in rows of nothing but -inf
    value = weights / total
    if exact:
        return _ties(span, value)
    terms = logits.shape[-1]
    drift = torch.where(span.isinf(), 0.0, 2.0**-22 * span)
    mean = (value * drift).sum(-1, keepdim=True)
    energy = value.square().sum(-1, keepdim=True).sqrt()
    summing = (ACCUMULATION * _counted(terms) * (1 + energy)).clamp_max(2.0**-24 * terms)
    error = (drift + mean + ELEMENTARY * (2 + parts) + summing) * value + SMALLEST_NORMAL
    return Estimate(value, torch.where(span.isinf(), 0.0, error))


def _ties(span: Tensor, value: Tensor) -> Estimate:
    """Softmax of exact data: the quotient of one and a power of two for the largest logits of a row, else zero."""
    largest = span == 0
    count = largest.sum(-1)
    if bool((count & (count - 1)).any()):
        raise ValueError("exact data has rows whose largest logits are not 1, 2, 4, ...: their quotient rounds")
    nearest = float(span.masked_fill(largest, torch.inf).min()) / math.log(2) if span.numel() else math.inf
    if nearest < ONE_HOT:
        raise ValueError(f"exact data has a weight of 2^-{nearest:.4g}, over 2^-{ONE_HOT:g}: it could be seen")
    value = torch.where(largest, value, 0.0)
    return Estimate(value, None, float(value[largest].min()) if bool(largest.any()) else 1.0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    *,
    scale: float,
    dtype: torch.dtype,
    sink: float | Tensor | None = None,
    exact: bool = False,
) -> Estimate:
    """Softmax attention of one head in fp32, its weights rounded to ``dtype`` for the sum and not in the normaliser.

    With o = sum_j p_j v_j, to first order a relative error d_j of the unnormalised weights moves o by
    sum_j p_j d_j (v_j - o). A score carries the error of a product (see :func:`product`), the exponent of a weight
    four fp32 roundings of its distance to the largest, and the exponential ELEMENTARY, once more at each rise of the
    running maximum (about log2 of the keys). The weights round to ``dtype`` independently, each by at most half an ulp
    (uniform: standard deviation ulp / sqrt(12)): 6 sigma of the sum, or the sum of all half ulps if that is less. The
    sums over keys and the normaliser carry the error of a product, the division ELEMENTARY.

    Args:
        q: (Q, D) float64.
        k: (K, D) float64.
        v: (K, D) float64.
        visible: (Q, K) bool, the keys each query sees; a row that sees nothing gives zeros.
        scale: positive factor of q.k.
        dtype: of the operands.
        sink: one more logit without a value, of all rows or of each (Q,).
        exact: every row must have a single weight that is not zero in fp32.

    Raises:
        ValueError: ``exact`` is asked for and a second weight is within 2^-ONE_HOT of the largest.
    """
    scores = q @ k.mT
    logits = (scores * scale).masked_fill(~visible, -torch.inf)
    sink_logit = logits.new_empty((len(logits), 1))
    sink_logit[:, 0] = -torch.inf if sink is None else sink
    logits = torch.cat([logits, sink_logit], 1)
    top = logits.amax(1, keepdim=True)
    span = torch.where(top.isneginf(), torch.inf, top - logits)
    if exact:
        return _one_hot(span, v)
    weights = torch.exp(-span)
    largest = 1 / weights.sum(1, keepdim=True).clamp_min(1)
    p = weights * largest
    value = p[:, :-1] @ v
    energy = torch.sqrt((p[:, :-1].square().float() @ v.square().float()).double())

    score_energy = torch.sqrt((q.square().float() @ k.square().float().mT).double())
    score_error = ACCUMULATION * max(q.shape[1], 16) * (scores.abs() + score_energy) * scale
    score_error = torch.cat([score_error, 2.0**-22 * sink_logit.abs()], 1)
    drift = p * (score_error + 2.0**-22 * span + ELEMENTARY * (2 + math.log2(max(len(k), 1))))
    drift = torch.where(p > 0, drift, 0.0)
    carried = (drift[:, :-1].float() @ v.abs().float()).double() + drift.sum(1, keepdim=True) * value.abs()

    seen = int(visible.sum(1).max())
    own = ACCUMULATION * max(seen, 64) * (2 * value.abs() + energy) + ELEMENTARY * value.abs()
    return Estimate(value, carried + own + _rounded_weights(p[:, :-1], largest, v, dtype))


def _one_hot(span: Tensor, v: Tensor) -> Estimate:
    """Attention with exact data: each row is the value of its largest logit, zero where that is the sink's or none.

    span: (Q, K + 1) distance of each logit to the largest of its row, the sink last.
    """
    nearest = math.inf
    if len(span) and span.shape[1] > 1:
        nearest = torch.topk(span, 2, largest=False).values[:, 1].min().item() / math.log(2)
    if not nearest >= ONE_HOT:
        raise ValueError(f"exact data has a second weight of 2^-{nearest:.4g}, over 2^-{ONE_HOT:g}: it could be seen")
    return Estimate((span[:, :-1] == 0).double() @ v, None)


def _rounded_weights(p: Tensor, largest: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding the weights to ``dtype`` moves the sum by; they are rounded while the largest is about 1."""
    if dtype == torch.float32:
        return torch.zeros((), dtype=torch.float64)
    bits, lowest = _SIGNIFICAND[dtype]
    half_ulp = torch.where(p > 0, torch.maximum(p * 2.0**-bits, largest * 2.0 ** (lowest - bits)), 0.0).float()
    independent = 6 / math.sqrt(3) * torch.sqrt(half_ulp.square() @ v.square().float())
    return torch.minimum(half_ulp @ v.abs().float(), independent).double()


SAMPLES = 16  # runs of a computation with errors drawn at random
WIDTH = 12  # of a bound in deviations that are estimated from SAMPLES runs
PRODUCT_WIDTH = 9  # of the bound of a long product in deviations of a sum made one term after the other
ELEMENTARY_DEVIATION = ELEMENTARY / 3  # the most that such a function errs, taken as three deviations


def summing_deviation(terms: int) -> float:
    """Standard deviation of the error of a sum, relative to its terms and to itself: see :func:`product`."""
    return ACCUMULATION * _counted(terms) / PRODUCT_WIDTH


def rounding_deviation(dtype: torch.dtype) -> float:
    """Standard deviation of a rounding to ``dtype``, uniform within half an ulp, relative to the largest ulp."""
    if dtype not in _SIGNIFICAND:
        raise ValueError(f"rounding to {dtype} is not defined here")
    return float(2.0 ** -_SIGNIFICAND[dtype][0] / math.sqrt(3))


def sampled(value: Tensor, runs: list[Tensor]) -> Estimate:
    """The error of a computation from runs with errors drawn at random, see :mod:`gpucheck.verify.sampling`.

    The error of a right result over the root mean square of n such differences follows Student's t with n degrees of
    freedom. With 16 it passes WIDTH once in 500 million elements, if the result errs as much as the runs do, which take
    sums one term after the other. A computation that never differs makes no error.

    Args:
        value: float64, or whole numbers in it.
        runs: SAMPLES of them, of the same shape.
    """
    if len(runs) != SAMPLES:
        raise ValueError(f"expected {SAMPLES} runs, not {len(runs)}")
    square = torch.zeros_like(value)
    for run in runs:
        square += torch.where(run == value, 0.0, run - value).square()  # equal infinities do not differ
    if not bool(square.any()):
        return Estimate(value, None)
    return Estimate(value, WIDTH * (square / SAMPLES).sqrt() + SMALLEST_NORMAL)


def stated(value: Tensor, *, absolute: float, relative: float) -> Estimate:
    """An error that the author of a computation states instead of deriving it."""
    return Estimate(value, absolute + relative * value.abs())
