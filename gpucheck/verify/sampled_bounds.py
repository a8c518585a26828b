"""Bounds of computations that no rule describes: their error is seen in runs with errors drawn at random.

How large the errors are that :mod:`gpucheck.verify.noise_model` draws, and how far a right result may then lie from the
reference. What :mod:`gpucheck.verify.bounds` derives operation by operation needs none of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpucheck.verify.bounds import ELEMENTARY, HALF_ULP, SMALLEST_NORMAL, Estimate, rounding_deviation
from gpucheck.verify.views import pieces_of

SAMPLES = 16  # runs of a computation with errors drawn at random
WIDTH = 12  # of a bound in deviations
FEW = 1 << 17  # elements of an output from which on bounds of drawn errors are wider, see :func:`width`
SUM_DEVIATION = 1 / 3  # of a sum, in 2^-24 sqrt(K) and relative to its terms and to itself
ELEMENTARY_DEVIATION = ELEMENTARY / 3  # the most that such a function errs, taken as three deviations


def summing_deviation(terms: int) -> float:
    """Deviation to draw the error of a sum with, relative to its terms and to itself.

    Twice that of a sum made one term after the other, whose errors have a longer tail than those that are drawn (see
    :func:`gpucheck.verify.bounds.product`): an estimate from SAMPLES runs then passes WIDTH less than once in 1e9.
    Terms with a common part may err twice as much, see :func:`width`.
    """
    return SUM_DEVIATION * HALF_ULP * math.sqrt(terms)


_OPERAND_BITS = {"fp32": 24, "tf32": 11, "bf16": 8}
"""What a problem may allow products to be computed in: fp32 as it is, or operands cut to tf32 or bf16.

With bf16 results may be stored in it as well.
"""


def operand_deviation(precision: str) -> float:
    """Deviation to draw the error of one operand with, for a product whose two operands are cut to a precision.

    What is cut off lies evenly within one unit in the last place, whether it is rounded or not: a deviation of
    2^(1 - bits) / sqrt(12) for each operand. 0 for fp32, whose products are exact.
    """
    return 0.0 if precision == "fp32" else float(2.0 ** (1 - _OPERAND_BITS[precision]) / math.sqrt(6))


def truncation_deviation(precision: str) -> float:
    """Deviation to draw one factor of a whole product with, whose operands were cut off and not rounded.

    Hardware that is given fp32 bits takes the upper ones. Each operand then shrinks by half a unit in the last place on
    average, all terms alike; WIDTH deviations come to three times that.
    """
    return 0.0 if precision == "fp32" else 3 * 2.0 ** (1 - _OPERAND_BITS[precision]) / WIDTH


def storage_deviation(precision: str) -> float:
    """Deviation of the rounding of results that may be stored in a precision; 0 where they stay in their dtype."""
    return rounding_deviation(torch.bfloat16) if precision == "bf16" else 0.0


def in_float64(estimate: Estimate) -> Estimate:
    """The error of a computation in float64 from that of the same in fp32: errors of both grow alike.

    The reference is computed in float64 too, and errs as much, so the two add up.
    """
    assert estimate.error is not None
    return Estimate(estimate.value, estimate.error * (2.0 * 2.0**-29), estimate.unit)


def width(elements: int) -> float:
    """The width of a bound of drawn errors, in deviations that are estimated from SAMPLES runs.

    The error of a right result over the root mean square of n differences follows Student's t with n degrees of
    freedom. With 16 it passes WIDTH once in 500 million elements, if the result errs as much as the runs do. A product
    of inputs that are all positive, its sums made one term after the other, errs up to twice as much in some columns.
    Half a million elements of such a product, with sums of 4096 terms, were simulated: of 8 million elements one passes
    WIDTH in 6 of 100 outputs. How often that happens falls about with the n-th power of the width. So a bound grows
    with the n-th root of the elements, and an output of any size passes about as seldom as one of FEW elements.
    """
    return float(WIDTH * max(1.0, elements / FEW) ** (1 / SAMPLES))


def sampled(value: Tensor, squares: Tensor, deviations: float) -> Estimate:
    """The error of a computation from runs with errors, see :mod:`gpucheck.verify.noise_model`.

    A computation that never differs makes no error.

    Args:
        value: float64, or whole numbers in it.
        deviations: WIDTH of those that are exact, else what :func:`width` says.
        squares: float64, of the same shape: :func:`add_square` over SAMPLES runs, or over those of
            :mod:`gpucheck.verify.own_errors`, which count as much. The error takes its memory.
    """
    if not bool(squares.any()):
        return Estimate(value, None)
    return Estimate(value, squares.div_(SAMPLES).sqrt_().mul_(deviations).add_(SMALLEST_NORMAL))


def add_square(squares: Tensor, value: Tensor, run: Tensor, *, finite: bool, weight: float = 1.0) -> None:
    """Adds the squared difference of a run, to which equal infinities add nothing.

    Args:
        finite: what :func:`is_finite` says of the value.
        weight: what it counts.
    """
    for piece in pieces_of(value):
        difference = _difference(run[piece].double(), value[piece], finite=finite)
        squares[piece].addcmul_(difference, difference, value=weight)


def is_finite(value: Tensor) -> bool:
    """Whether no element is infinite or NaN, as far as a sum tells: one that overflows says no."""
    return math.isfinite(float(value.sum()))


ALIKE = 2.0**-20  # of the squares of SAMPLES runs: a thousandth of a deviation and less, float64 rounds far finer


def differs(value: Tensor, other: Tensor, squares: Tensor) -> bool:
    """Whether two values of one computation differ by more than float64 may round, seen from the noise of its runs."""
    finite = is_finite(value)
    return not all(
        bool((_difference(other[piece], value[piece], finite=finite).square_() <= ALIKE * squares[piece]).all())
        for piece in pieces_of(value)
    )


def _difference(run: Tensor, value: Tensor, *, finite: bool) -> Tensor:
    difference = run - value
    return difference if finite else torch.where(run == value, 0.0, difference)
