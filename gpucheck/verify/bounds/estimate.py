"""A reference value with its error, and how numbers round: what all bounds are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

EXACT_LIMIT = 2.0**24  # integers below this are exact in fp32
EXACT_LIMIT_FP8 = 2.0**11  # what data may reach that is exact on every device, Ada's and Hopper's fp8 sums included
HALF_ULP = 2.0**-24  # of fp32, relative
SMALLEST_NORMAL = 2.0**-126  # of fp32; what is smaller may be flushed to zero
ELEMENTARY = 2.0**-22  # one fast exponential and one fast division, a few fp32 ulps
_EXPONENT = 0x7FF << 52  # its bits in a float64
SIGNIFICAND = {
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


def require_exact(largest: float, unit: float, limit: float = EXACT_LIMIT) -> None:
    if largest > limit * unit:
        raise ValueError(f"exact data may reach {largest / unit:g} units, over {limit:g}: sums could round")


def largest_of(operand: Tensor) -> float:
    """The largest magnitude, found without a copy of what may be a large weight; NaN where one is in it."""
    if not operand.numel():
        return 0.0
    least, most = operand.aminmax()
    return max(-float(least), float(most))


def ulp(dtype: torch.dtype, magnitude: Tensor) -> Tensor:
    """Distance between neighbouring values of ``dtype`` at ``magnitude`` (float64, >= 0), subnormals included."""
    if dtype not in SIGNIFICAND:
        raise ValueError(f"no ulp is known for {dtype}; known: {', '.join(str(d) for d in SIGNIFICAND)}")
    bits, lowest = SIGNIFICAND[dtype]
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
    if dtype not in SIGNIFICAND:
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
    if dtype not in SIGNIFICAND:
        raise ValueError(f"rounding to {dtype} is not defined here")
    return float(2.0 ** -SIGNIFICAND[dtype][0] / math.sqrt(3))


def stated(value: Tensor, *, absolute: float, relative: float) -> Estimate:
    """An error that the author of a computation states instead of deriving it."""
    return Estimate(value, absolute + relative * value.abs())
