"""What kind of error an output shows, in numbers that tell a wrong operand from a wrong place or a lost digit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 8  # elements that a correlation needs to mean anything
SAMPLED_ROWS = 64
SAME_ROW = 1e-2  # squared distance of two rows, relative to the reference's, up to which they count as the same
COMMON = 0.8  # share of the sampled rows that must have moved by the same distance


@dataclass(frozen=True)
class Character:
    """Measured over the wrong finite elements of an output."""

    inward: float  # mean sign of |got| - |expected|, -1 to 1: -1 is always towards zero
    correlation: float | None  # of got and expected; None: too few elements, or one side is constant
    relative: float | None  # rms of the error over rms of the reference; None where the reference is all zero
    ratio: float | None  # got / expected where that is the same for nearly all, else None
    moved: int  # of the sampled wrong rows, those that are the reference of another row
    sampled: int  # wrong rows that were looked up
    shift: int | None  # distance that nearly all of them moved by


def character(got: Tensor, expected: Tensor, wrong: Tensor) -> Character:
    """Measures an error.

    Args:
        got: float64, the output.
        expected: float64, its reference, of the same shape.
        wrong: which elements are outside their bound.
    """
    finite = wrong & torch.isfinite(got)
    seen, wanted = got[finite], expected[finite]
    rms = float(wanted.square().mean().sqrt()) if seen.numel() else 0.0
    error = float((seen - wanted).square().mean().sqrt()) if seen.numel() else 0.0
    moved, sampled, shift = _moved_rows(got, expected, wrong)
    return Character(
        inward=float((seen.abs() - wanted.abs()).sign().mean()) if seen.numel() else 0.0,
        correlation=_correlation(seen, wanted),
        relative=error / rms if rms and math.isfinite(error) else None,
        ratio=_ratio(seen, wanted),
        moved=moved,
        sampled=sampled,
        shift=shift,
    )


def _correlation(seen: Tensor, wanted: Tensor) -> float | None:
    if seen.numel() < FEWEST:
        return None
    left, right = seen - seen.mean(), wanted - wanted.mean()
    size = float(left.norm() * right.norm())
    return float(left @ right) / size if size and math.isfinite(size) else None


def _ratio(seen: Tensor, wanted: Tensor) -> float | None:
    ratios = (seen / wanted)[wanted != 0]
    if ratios.numel() < FEWEST:
        return None
    middle = float(ratios.median())
    alike = (ratios - middle).abs() <= 0.01 * abs(middle)
    return middle if float(alike.double().mean()) > 0.95 else None


def _moved_rows(got: Tensor, expected: Tensor, wrong: Tensor) -> tuple[int, int, int | None]:
    """How many of some wrong rows are the reference of another row, how many were looked up, their common distance."""
    if got.ndim < 2 or got.shape[-1] < FEWEST:
        return 0, 0, None
    rows, references = got.reshape(-1, got.shape[-1]), expected.reshape(-1, got.shape[-1])
    mostly = (wrong.reshape(rows.shape).double().mean(1) > 0.5) & torch.isfinite(rows).all(1)
    numbers = mostly.nonzero().flatten()
    numbers = numbers[:: max(1, len(numbers) // SAMPLED_ROWS)][:SAMPLED_ROWS]
    if not len(numbers):
        return 0, 0, None
    sample, all_rows = rows[numbers].float(), references.float()
    sizes = all_rows.square().sum(1)
    distances = sizes[None, :] - 2 * sample @ all_rows.mT + sample.square().sum(1, keepdim=True)
    nearest, places = distances.min(1)
    same = (nearest <= SAME_ROW * sizes[places]) & (places != numbers) & (sizes[places] > 0)
    steps = (places - numbers)[same]
    moved = len(steps)
    if not moved:
        return 0, len(numbers), None
    common = int(steps.mode().values)
    return moved, len(numbers), common if float((steps == common).double().mean()) >= COMMON else None
