"""Every bound of the project: how far a right result may lie from the float64 reference, and why.

A reference is built as an :class:`Estimate`: a float64 value together with the largest absolute error that a right
computation with fp32 accumulation may have made so far. Each operation below carries the error of its operands through
and adds its own. An ``error`` of None means exact data: no operation may round, so any right computation gives the
same bits. An unknown dtype raises; nothing falls back to a default tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

EXACT_LIMIT = 2.0**24  # integers below this are exact in fp32
EXACT_LIMIT_FP8 = 2.0**11  # what data may reach that is exact on every device, Ada's and Hopper's fp8 sums included
HALF_ULP = 2.0**-24  # of fp32, relative
LARGEST_SQUARED = 2.0**50  # sums of squares of smaller numbers stay far within fp32
SMALLEST_NORMAL = 2.0**-126  # of fp32; what is smaller may be flushed to zero
ELEMENTARY = 2.0**-22  # one fast exponential and one fast division, a few fp32 ulps
STEEP = 128.0  # alpha of a swiglu: the exponential of a whole number times that is 0, 1 or infinite in fp32

_EXPONENT = 0x7FF << 52  # its bits in a float64
_SIGNIFICAND = {
    torch.bfloat16: (8, -126),
    torch.float16: (11, -14),
    torch.float64: (53, -1022),
    torch.float32: (24, -126),
    torch.float8_e4m3fn: (4, -6),
}


@dataclass(frozen=True)
class Estimate:
    """A reference value and the error a right computation may have.

    value: float64, any shape; exact data of :mod:`gpucheck.checks.rank_data` in the dtype of the output, which holds
    them. error: float64 >= 0 of the same shape, or None for exact data.
    unit: for exact data, the power of two that divides every value; operations check that fp32 holds their sums.
    """

    value: Tensor
    error: Tensor | None
    unit: float = 1.0

    @property
    def exact(self) -> bool:
        return self.error is None

    def widened(self) -> Estimate:
        """The same with its value as float64, whatever holds it."""
        return self if self.value.dtype == torch.float64 else replace(self, value=self.value.double())

    def flat(self) -> Estimate:
        """The same numbers in one axis."""
        return self.reshaped(-1)

    def reshaped(self, *shape: int) -> Estimate:
        """The same numbers in another shape."""
        return Estimate(self.value.reshape(shape), None if self.error is None else self.error.reshape(shape), self.unit)


@dataclass(frozen=True)
class Cores:
    """How matrix units add products to a running sum: all addends of a step are aligned to the largest and cut off.

    products: of a step. kept: bits after the point that addends keep, the largest being 1 to 2. stored: those that the
    running sum keeps, which is cut off as well.
    """

    products: int
    kept: int
    stored: int

    @property
    def exact(self) -> float:
        """Whole numbers up to this are summed without loss."""
        return 2.0 ** (24 if self.kept > self.stored else self.kept - 2)

    def error(self, terms: int, value: Tensor, energy: Tensor, lean: Tensor | None = None) -> Tensor:
        """What a sum of products loses at most, see :func:`product`."""
        steps = -(-terms // self.products)
        addend, total = 2.0**-self.kept, 2.0**-self.stored
        part = max(0.25, 1 - addend / total)  # of a unit of the running sum, what a step leaves behind its last bit
        walk, carried = CUT_WALK * math.sqrt(terms) * addend, steps * part * total
        error = value.abs() * (walk / 2 + CUT_SHARE * carried)
        error.add_(energy, alpha=walk + CUT_AREA * carried)
        return error if lean is None else error.add_(lean * value.abs(), alpha=CUT_SHARE * addend)


@dataclass(frozen=True)
class Arithmetic:
    """How a device adds up products; each kind of operands has the matrix units that may take it.

    Sums of fp32 operands, and of kinds without matrix units here, round every addition to the nearest fp32 value.
    """

    name: str
    half: tuple[Cores, ...] = ()  # bf16, fp16, and what is decoded to them
    fp8: tuple[Cores, ...] = ()

    def cores(self, operands: torch.dtype | None) -> tuple[Cores, ...]:
        """The matrix units that may take operands of a dtype."""
        if operands == torch.float32:
            return ()
        return self.fp8 if operands is not None and operands.itemsize == 1 else self.half


_AMPERE, _HOPPER = Cores(8, 24, 23), Cores(16, 25, 23)
ARITHMETIC = {
    each.name: each
    for each in (
        Arithmetic("interpreter"),
        Arithmetic("sm_80", (_AMPERE,), (_AMPERE,)),  # fp8 is made fp16 first
        Arithmetic("sm_86", (_AMPERE,), (_AMPERE,)),
        Arithmetic("sm_89", (_AMPERE,), (Cores(16, 13, 13),)),
        Arithmetic("sm_90", (_HOPPER,), (Cores(32, 13, 13),)),
        Arithmetic("sm_100", (_HOPPER,), (_HOPPER,)),  # 32 fp8 products a step, or 16 made fp16 first
        Arithmetic("sm_103", (_HOPPER,), (_HOPPER,)),
        Arithmetic("sm_120", (_HOPPER,), (_HOPPER,)),
        Arithmetic("gfx942"),  # cuts products off far behind the sum, which it rounds to the nearest
        Arithmetic("gfx950"),  # taken to add up as gfx942 does
    )
}
"""By architecture, from tests of the instructions by their bits: Xie et al., MMA-Sim, arXiv 2511.10909; Khattak and
Mikaitis, Accurate Models of NVIDIA Tensor Cores, arXiv 2512.07004. ``tests/gpu/measure_sums.py`` measures the GPU at
hand."""


def arithmetic(architectures: Iterable[str]) -> Arithmetic:
    """The arithmetic that covers all of some architectures; one that is not known is covered by all known ones."""
    names = sorted(set(architectures))
    unknown = [name for name in names if name not in ARITHMETIC]
    known = list(ARITHMETIC.values()) if unknown or not names else [ARITHMETIC[name] for name in names]
    told = [f"{name} (not known, so the widest bound of all known GPUs)" if name in unknown else name for name in names]
    half, fp8 = ({cores: None for each in known for cores in getattr(each, kind)} for kind in ("half", "fp8"))
    return Arithmetic(" and ".join(told) or "any known device", tuple(half), tuple(fp8))


ANY_DEVICE = arithmetic(())
_device: ContextVar[Arithmetic | None] = ContextVar("_device", default=None)


@contextmanager
def computed_by(device: Arithmetic) -> Iterator[None]:
    """Inside, in this thread, estimates have the bounds of a device; elsewhere those of :data:`ANY_DEVICE`."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def _at_hand() -> Arithmetic:
    return _device.get() or ANY_DEVICE


def _require_exact(largest: float, unit: float, limit: float = EXACT_LIMIT) -> None:
    if largest > limit * unit:
        raise ValueError(f"exact data may reach {largest / unit:g} units, over {limit:g}: sums could round")


def ulp(dtype: torch.dtype, magnitude: Tensor) -> Tensor:
    """Distance between neighbouring values of ``dtype`` at ``magnitude`` (float64, >= 0), subnormals included."""
    if dtype not in _SIGNIFICAND:
        raise ValueError(f"no ulp is known for {dtype}; known: {', '.join(str(d) for d in _SIGNIFICAND)}")
    bits, lowest = _SIGNIFICAND[dtype]
    power = (magnitude.view(torch.int64) & _EXPONENT).view(torch.float64)  # of two, 0 where that is subnormal
    power = power.masked_fill_(power == torch.inf, 0.5).clamp_min_(2.0**lowest)
    return power.mul_(2.0 ** (1 - bits))


def tolerance(dtype: torch.dtype, value: Tensor, error: Tensor) -> Tensor:
    """Largest ``|output - value|`` of a right output stored as ``dtype``: half an ulp of rounding plus ``error``."""
    return ulp(dtype, value.abs() + error) / 2 + error


def round_to(dtype: torch.dtype, value: Tensor) -> Tensor:
    """float64 -> ``dtype`` -> float64 with a single rounding to nearest even.

    torch rounds float64 to bf16 and fp16 by way of float32, which rounds twice; rounding the float32 step to odd
    keeps the information that the second rounding needs.
    """
    if dtype == torch.float64:
        return value
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


def rounding_deviation(dtype: torch.dtype) -> float:
    """Standard deviation of a rounding to ``dtype``, uniform within half an ulp, relative to the largest ulp."""
    if dtype not in _SIGNIFICAND:
        raise ValueError(f"rounding to {dtype} is not defined here")
    return float(2.0 ** -_SIGNIFICAND[dtype][0] / math.sqrt(3))


def product(x: Estimate, w: Estimate, *, operands: torch.dtype | None = None) -> Estimate:
    """``x @ w`` accumulated in fp32, in any order.

    Additions that round to nearest: with partial sums S_j the error is a sum of roundings, each uniform within half an
    ulp of S_j, so its variance is that of sum S_j^2, whatever R the sum ends at. Terms of random sign make S_j a random
    walk to R whose step is E / sqrt(K), with E = sqrt(sum x^2 w^2) from the operands themselves; the area under the
    square of such a walk has an exponential tail, and so has the error, in units of 2^-24 sqrt(K) (E + |R| / 2). Terms
    of one sign make S_j grow like R j / K. The constants are measured, see SUM_WALK.

    Matrix units that cut off (:class:`Cores`): the running sum loses a part of a unit in each step, always towards
    zero, so the loss follows the area under the walk; each product loses a uniform part of one unit, towards zero,
    which is a walk where signs are random, and adds up by as much as one sign prevails, see :func:`_lean`.

    Operands that are not drawn at random show: sums that are many times E lean to one side, and their terms may be
    alike, so that their roundings are, see :func:`_alike`; partial sums that are many times E come of an order in the
    operands, and the largest of them takes the place of R, see :func:`_partial`.

    Args:
        x: (..., M, K).
        w: (..., K, N), exactly as the kernel sees it after dequantisation; its own error is taken as none.
        operands: what the kernel multiplies: fp8, whose sums some devices keep shorter, fp32, which no matrix unit may
            take (TF32 is another precision), or a dtype of 16 bits; None for one of the last two.
    """
    value = x.value @ w.value
    terms = w.value.shape[-2]
    cores = _at_hand().cores(operands)
    if x.error is None and w.error is None:
        largest, unit = _largest(x.value) * _largest(w.value) * terms if value.numel() else 0.0, x.unit * w.unit
        limit = min((each.exact for each in cores), default=EXACT_LIMIT)
        if largest > limit * unit:  # no partial sum is larger than that of all magnitudes
            largest = float((x.value.abs() @ w.value.abs()).max())
        _require_exact(largest, unit, limit)
        return Estimate(value, None, unit)
    kept = holds_squares(x.value, w.value)
    lowest = torch.finfo(operands).tiny if cores and operands else 0.0
    energy = torch.sqrt((_squares(x.value, kept, lowest) @ _squares(w.value, kept, lowest)).double())
    size, alike = value.abs(), 1.0
    if terms > FEWEST_ORDERED and size.numel():
        if bool((size > min(UNLIKELY, 0.8 * math.sqrt(terms)) * energy).any()):
            alike = _alike(x.value, w.value)
        if _ordered(x.value, w.value):
            size = torch.maximum(size, PLATEAU * _partial(x.value, w.value))
    error = summing(terms, size, energy, cores, alike=alike, lean=_lean(x.value, w.value) if cores else None)
    if x.error is not None and bool(x.error.any()):
        error = error + (x.error.to(kept) @ w.value.to(kept, copy=True).abs_()).double()
    return Estimate(value, error)


def holds_squares(*operands: Tensor) -> torch.dtype:
    """float32, which is fast, where it holds the squares of operands; else float64."""
    return torch.float32 if max(map(_largest, operands)) < LARGEST_SQUARED else torch.float64


def _largest(operand: Tensor) -> float:
    """The largest magnitude, found without a copy of what may be a large weight; NaN where one is in it."""
    if not operand.numel():
        return 0.0
    least, most = operand.aminmax()
    return max(-float(least), float(most))


def _squares(operand: Tensor, kept: torch.dtype, lowest: float) -> Tensor:
    """The squares in a dtype; subnormal numbers as matrix units align them: as if they were the smallest normal one."""
    size = operand.to(kept, copy=True)
    if lowest >= SMALLEST_NORMAL * 2:
        size = torch.where((size != 0) & (size.abs() < lowest), lowest, size)
    return size.square_()


FEWEST_ORDERED = 24  # terms from which a bound for random ones may not hold for others
UNLIKELY = 7.0  # times E, which no sum of terms with random signs in 1e11 reaches
RARE = 2.5  # times E, which the partial sums of one in forty such sums reach, and those of ordered terms mostly
LEANING = 2.0  # times sqrt(K) products; fewer lose less than what the walk of all of them may
LOOKED_AT = 16  # rows and columns, evenly spread, that tell whether operands are drawn at random
PARTS = 8  # of the terms, after each of which partial sums are looked at
PLATEAU = 1.6  # a partial sum may stay at its largest, where R is reached at the end alone


def _some(operand: Tensor, axis: int) -> Tensor:
    """LOOKED_AT rows or columns of (..., A, B), the other axis last."""
    lines = operand.movedim(axis, -2).reshape(-1, operand.shape[-1 if axis == -2 else -2])
    return lines[:: max(1, len(lines) // LOOKED_AT)][:LOOKED_AT]


def _alike(x: Tensor, w: Tensor) -> float:
    """How much more roundings add up where terms come again and again: a term rounds alike each time.

    With a share f_v of the terms equal to v, all of one sign, they stray by K sqrt(sum f_v^2) roundings instead of
    sqrt(K). The shares of the products are at most those of x times those of w where these are independent; a value and
    its negative cancel. No term strays by more than half an ulp.
    """
    shares = 1.0
    for lines in (_some(x, -2), _some(w, -1)):
        found = 0.0
        for line in lines:
            size, place = line[line != 0].abs().unique(return_inverse=True)
            net = torch.zeros_like(size).index_add_(0, place, line[line != 0].sign())
            found = max(found, float((net / len(line)).square().sum()))
        shares *= found
    terms = x.shape[-1]
    return min(math.sqrt(1 + terms * shares), max(1.0, 0.5 * math.sqrt(terms) / SUM_SHARE))


def _ordered(x: Tensor, w: Tensor) -> bool:
    """Whether partial sums are larger than those of terms with random signs, and than the whole; tried on a few."""
    rows, columns = _some(_first(x), -2), _some(_first(w), -1)
    energy = (rows.square() @ columns.square().mT).sqrt()
    partial = _partial(rows, columns.mT)
    beyond = torch.where(partial > 1.1 * (rows @ columns.mT).abs(), partial / energy.clamp_min(SMALLEST_NORMAL), 0.0)
    return bool((beyond > UNLIKELY).any()) or float((beyond > RARE).double().mean()) > 0.25


def _lean(x: Tensor, w: Tensor) -> Tensor | None:
    """By how many products one sign prevails in each sum; None where signs are as random ones, tried on a few."""
    terms = x.shape[-1]
    if not x.numel() or not w.numel():
        return None
    net = (_some(_first(x), -2).sign() @ _some(_first(w), -1).sign().mT).abs()
    if max(float(net.mean(axis).max()) for axis in (0, 1)) <= LEANING * math.sqrt(terms):
        return None
    return (x.sign().float() @ w.sign().float()).abs().double()


def _first(operand: Tensor) -> Tensor:
    return operand[(0,) * (operand.ndim - 2)]


def _partial(x: Tensor, w: Tensor) -> Tensor:
    """The largest of the partial sums after each of PARTS of the terms."""
    total = largest = torch.zeros((), dtype=x.dtype)
    for terms in torch.arange(x.shape[-1]).chunk(PARTS):
        first, last = int(terms[0]), int(terms[-1]) + 1
        total = total + x[..., first:last] @ w[..., first:last, :]
        largest = torch.maximum(largest, total.abs())
    return largest


SUM_WALK = 2.75  # of E, and
SUM_SHARE = 1.6  # of |R|, in 2^-24 sqrt(K)
"""Measured on an H200: 18 kinds of operands, 21 K from 1 to 8192, 8 orders, 1e8 elements each. In units of E + |R| / 2
the error of the worst order passes 2.4 once in 1e9 where signs are random (the line through the quantiles of 1e-6 and
1e-7, over the logarithm of the share; the mean of all K, single ones up to 2.85), and at most 3.2 where R is many times
E. What the tensor cores lost there is within the next three.
"""
CUT_WALK = 1.25  # of E + |R| / 2, in sqrt(K) units of an addend
CUT_AREA = 0.65  # of E, and
CUT_SHARE = 0.2  # of |R|, in units of the running sum a step, or of an addend a product


def summing(
    terms: int,
    value: Tensor,
    energy: Tensor,
    cores: Iterable[Cores] = (),
    *,
    alike: float = 1.0,
    lean: Tensor | None = None,
) -> Tensor:
    """Error of a sum of products in fp32, see :func:`product`.

    Args:
        terms: how many.
        value: the right sum R.
        energy: the root E of the sum of the squared products.
        cores: the matrix units that may make it.
        alike: see :func:`_alike`.
        lean: see :func:`_lean`.
    """
    walk, share = _sum_factors(terms)
    error = HALF_ULP * (walk * energy + alike * share * value.abs())
    for each in cores:
        error = torch.maximum(error, each.error(terms, value, energy, lean))
    return error


def _sum_factors(terms: int) -> tuple[float, float]:
    """What half ulps of E and of |R| the error of a sum reaches.

    Up to three terms it is certain: K rounded products are at most sqrt(K) E in all, a partial sum of j sqrt(j) E.
    """
    if terms <= 3:
        return sum(math.sqrt(partial) for partial in (*range(2, terms), terms)), float(terms > 1)
    return SUM_WALK * math.sqrt(terms), SUM_SHARE * math.sqrt(terms)


def add(x: Estimate, term: Tensor) -> Estimate:
    """``x + term`` in fp32, where exact data adds whole units; cancellation keeps the error of the larger operand."""
    value = x.value + term
    if x.error is None:
        _require_exact(_largest(value), x.unit)
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
        _require_exact(float((value.abs() / step).max()) if value.numel() else 0.0, x.unit)
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


def ramp(x: Estimate, limit: float) -> Estimate:
    """:func:`swiglu` of whole numbers with alpha STEEP, whose sigmoid is then 0, 1/2 or 1: ``max(g, 0) * (l + 1)``."""
    if x.error is not None or x.unit < 1:
        raise ValueError("only the swiglu of exact data that is whole is a ramp")
    gate, linear = x.value[..., 0::2].clamp(0, limit), x.value[..., 1::2].clamp(-limit, limit)
    return Estimate(gate * (linear + 1), None)


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


FEWEST_KEYS = 16  # of a block that attention takes at once
ONE_HOT = 200.0  # in powers of two: a weight below 2^-200 of the largest is zero in fp32


def softmax(logits: Tensor, *, parts: int = 1, exact: bool = False) -> Estimate:
    """Softmax over the last axis of (..., n) float64 logits, computed in fp32; a row of nothing but -inf gives zeros.

    To first order a weight moves by its own relative error less that of the normaliser, which is the mean of those of
    all weights. A weight carries four fp32 roundings of its distance to the largest in its exponent and ELEMENTARY for
    the exponential, once more at each rise of the running maximum, which later parts of the row may bring; the
    quotient carries ELEMENTARY. The normaliser adds n positive terms: half an ulp each, or what :func:`summing` says
    if that is less.

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
    normaliser = summing(terms, torch.ones_like(energy), energy).clamp_max(HALF_ULP * terms)
    error = (drift + mean + ELEMENTARY * (2 + parts) + normaliser) * value + SMALLEST_NORMAL
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
    soft_cap: float = 0.0,
    exact: bool = False,
    stored: bool = False,
) -> Estimate:
    """Softmax attention of one head in fp32, its weights rounded to ``dtype`` for the sum and not in the normaliser.

    With o = sum_j p_j v_j, to first order a relative error d_j of the unnormalised weights moves o by
    sum_j p_j d_j (v_j - o). A score carries the error of a product (see :func:`product`), the exponent of a weight
    four fp32 roundings of its distance to the largest, and the exponential ELEMENTARY, once more at each rise of the
    running maximum (about log2 of the keys). The weights round to ``dtype`` independently, each by at most half an ulp
    (uniform: standard deviation ulp / sqrt(12)): 6 sigma of the sum, or the sum of all half ulps if that is less. The
    sums over keys and the normaliser carry what :func:`summing` says, the division ELEMENTARY. A soft cap c tanh(s / c)
    moves no further than its score does; its quotient of exponentials adds three ELEMENTARY of c, and its argument four
    fp32 roundings of the score.

    Args:
        q: (Q, D) float64.
        k: (K, D) float64.
        v: (K, D) float64.
        visible: (Q, K) bool, the keys each query sees; a row that sees nothing gives zeros.
        scale: positive factor of q.k.
        dtype: of the operands.
        sink: one more logit without a value, of all rows or of each (Q,).
        soft_cap: c of c tanh(score / c); 0: none.
        exact: every row must have a single weight that is not zero in fp32.
        stored: scores are stored as ``dtype`` before and after they are scaled, and their distances to the largest.

    Raises:
        ValueError: ``exact`` is asked for and a second weight is within 2^-ONE_HOT of the largest.
    """
    scores = q @ k.mT
    scaled = soft_cap * torch.tanh(scores * scale / soft_cap) if soft_cap else scores * scale
    logits = scaled.masked_fill(~visible, -torch.inf)
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
    cores = _at_hand().cores(dtype)
    score_error = summing(q.shape[1], scores, score_energy, cores) * scale
    if soft_cap:
        score_error = score_error + 3 * ELEMENTARY * soft_cap + 2.0**-22 * scaled.abs()
    score_error = torch.cat([score_error, 2.0**-22 * sink_logit.abs()], 1)
    if stored:
        rounding = 2.0 ** -_SIGNIFICAND[dtype][0]
        score_error += torch.where(span.isinf(), 0.0, rounding * (2 * logits.abs() + span))
        score_error = torch.expm1(score_error)  # no longer small beside 1
    drift = p * (score_error + 2.0**-22 * span + ELEMENTARY * (2 + math.log2(max(len(k), 1))))
    drift = torch.where(p > 0, drift, 0.0)
    carried = (drift[:, :-1].float() @ v.abs().float()).double() + drift.sum(1, keepdim=True) * value.abs()

    seen = int(visible.sum(1).max())
    seen += -(-seen // FEWEST_KEYS)  # the running sums are scaled, and round, once a block of keys
    normaliser = summing(seen, torch.ones_like(largest), p.square().sum(1, keepdim=True).sqrt())
    own = summing(seen, value, energy, cores) + (normaliser + ELEMENTARY) * value.abs()
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


def stated(value: Tensor, *, absolute: float, relative: float) -> Estimate:
    """An error that the author of a computation states instead of deriving it."""
    return Estimate(value, absolute + relative * value.abs())
