"""Products of matrices and other sums of many terms: what they lose, by number, order and likeness of the terms."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gpucheck.verify.bounds.estimate import EXACT_LIMIT, HALF_ULP, SMALLEST_NORMAL, Estimate, largest_of, require_exact
from gpucheck.verify.bounds.matrix_units import Cores, at_hand

LARGEST_SQUARED = 2.0**50  # sums of squares of smaller numbers stay far within fp32


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
    cores = at_hand().cores(operands)
    if x.error is None and w.error is None:
        largest, unit = largest_of(x.value) * largest_of(w.value) * terms if value.numel() else 0.0, x.unit * w.unit
        limit = min((each.exact for each in cores), default=EXACT_LIMIT)
        if largest > limit * unit:  # no partial sum is larger than that of all magnitudes
            largest = float((x.value.abs() @ w.value.abs()).max())
        require_exact(largest, unit, limit)
        return Estimate(value, None, unit)
    squares = _squares(x.value, w.value, torch.finfo(operands).tiny if cores and operands else 0.0)
    kept, energy = squares[0].dtype, (squares[0] @ squares[1]).double().sqrt_()
    del squares  # which may be large
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
    return torch.float32 if max(map(largest_of, operands)) < LARGEST_SQUARED else torch.float64


def _squares(x: Tensor, w: Tensor, lowest: float) -> list[Tensor]:
    """The squares of operands, in float32 where it holds them, else in float64.

    Subnormal numbers count as matrix units align them: as if they were the smallest normal one.
    """
    sizes = [operand.to(torch.float32, copy=True) for operand in (x, w)]
    if holds_squares(*sizes) != torch.float32:
        sizes = [operand.to(torch.float64, copy=True) for operand in (x, w)]
    if lowest >= SMALLEST_NORMAL * 2:
        sizes = [torch.where((size != 0) & (size.abs() < lowest), lowest, size) for size in sizes]
    return [size.square_() for size in sizes]


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
E. What the tensor cores lost there is within CUT_WALK, CUT_AREA and CUT_SHARE, see :class:`Cores`.
"""


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
