"""The smallest error of all elements alike that the judge sees in right outputs."""

from __future__ import annotations

import torch

from gpucheck.verify.bounds import Estimate, round_to, ulp
from gpucheck.verify.expected import Expected
from gpucheck.verify.judge import closest

MOST = 1 << 14  # elements that are tried: those that should show an error first
LEAST, LARGEST = 2.0**-24, 1.0  # of the errors that are tried; fp32 holds no smaller one
HALVINGS = 12  # of the ratio of these: down to half a percent of the answer


def least_uniform_error(expected: dict[str, Expected]) -> float:
    """The least e for which some output, scaled by 1 + e and stored, is called wrong; inf where there is none.

    Storing moves an element over its bound with a larger e at the latest, so halving finds the least one.
    """
    return min((_of_output(item) for item in expected.values() if item.dtype.is_floating_point), default=torch.inf)


def _of_output(expected: Expected) -> float:
    part = _most_sensitive(expected)
    if not part.estimate.value.numel() or not _detected(part, LARGEST):
        return torch.inf
    low, high = LEAST, LARGEST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if _detected(part, middle) else (middle, high)
    return high


def _detected(expected: Expected, error: float) -> bool:
    stored = round_to(expected.dtype, expected.estimate.value * (1 + error)).to(expected.dtype)
    return bool(closest(stored, expected)[1].any())


def _most_sensitive(expected: Expected) -> Expected:
    """The elements that an error of all alike takes out of their bounds first."""
    value = expected.estimate.value.double().flatten()
    usable = torch.isfinite(value) & (value != 0)
    if expected.also is not None:
        usable &= expected.also.flatten() == 0
    size = value.abs()
    error = expected.estimate.error
    if error is None:  # wrong once stored as another number: at the nearest midpoint between two numbers
        step = ulp(expected.dtype, size)
        room = step - torch.remainder(size + step / 2, step)
    else:
        room = ulp(expected.dtype, size + error.flatten()) / 2 + error.flatten()
    share = torch.where(usable, room / size, torch.inf)
    chosen = torch.topk(share, min(MOST, int(usable.sum())), largest=False).indices
    parts = [_picked(estimate, chosen) for estimate in (expected.estimate, *expected.alternatives)]
    return Expected(parts[0], expected.dtype, tuple(parts[1:]))


def _picked(estimate: Estimate, chosen: torch.Tensor) -> Estimate:
    error = estimate.error
    return Estimate(estimate.value.double().flatten()[chosen], None if error is None else error.flatten()[chosen])
