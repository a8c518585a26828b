"""What kind of error an output shows, in numbers that tell a wrong operand from a wrong place or a lost digit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FEWEST = 8  # elements that a correlation needs to mean anything
ENOUGH = 3  # elements or rows that must agree exactly before fewer than that count
BY_CHANCE = 100  # times as many different rows as there are: then no row is another's by chance
SAMPLED_ROWS = 64
MOST_LOOKED_UP = 2**26  # integers; in larger outputs nobody looks for rows that moved
SAME_ROW = 1e-2  # squared distance of two rows, relative to the reference's, up to which they count as the same
COMMON = 0.8  # share of the sampled rows that must have moved by the same distance


@dataclass(frozen=True)
class Character:
    """Measured over the wrong finite elements of an output; the last three of outputs of integers alone."""

    inward: float  # mean sign of |got| - |expected|, -1 to 1: -1 is always towards zero
    correlation: float | None  # of got and expected; None: too few elements, or one side is constant
    relative: float | None  # rms of the error over rms of the reference; None where the reference is all zero
    ratio: float | None  # got / expected where that is the same for nearly all, of integers for all; else None
    moved: int  # of the sampled wrong rows, those that are the reference of another row
    sampled: int  # wrong rows that were looked up
    shift: int | None  # distance that nearly all of them moved by
    zeros: int = 0  # that are zero
    scaled: int = 0  # that are the reference times a power of two, of either sign, or whose reference is zero
    step: float | None = None  # got - expected where that is the same for all of three or more
    span: list[float] = field(default_factory=list)  # smallest and largest value of the whole reference
    outside: int = 0  # beyond that span
    reordered: bool = False  # each wrong row holds the values of its reference in another order


def character(got: Tensor, expected: Tensor, wrong: Tensor, *, integers: bool = False) -> Character:
    """Measures an error.

    Args:
        got: the output, in float64 if it is one of integers or truth values.
        expected: float64, its reference, of the same shape.
        wrong: which elements are outside their bound.
        integers: the output is one of integers or truth values, where neighbours need not mean the same.
    """
    seen, wanted = got[wrong].double(), expected[wrong]
    finite = torch.isfinite(seen) & torch.isfinite(wanted)
    seen, wanted = seen[finite], wanted[finite]
    rms = float(wanted.square().mean().sqrt()) if seen.numel() else 0.0
    error = float((seen - wanted).square().mean().sqrt()) if seen.numel() else 0.0
    moved, sampled, shift = (_moved_whole if integers else _moved_rows)(got, expected, wrong)
    return Character(
        inward=float((seen.abs() - wanted.abs()).sign().mean()) if seen.numel() else 0.0,
        correlation=_correlation(seen, wanted),
        relative=error / rms if rms and math.isfinite(error) else None,
        ratio=_ratio(seen, wanted, exact=integers),
        moved=moved,
        sampled=sampled,
        shift=shift,
        zeros=int((seen == 0).sum()),
        scaled=_scaled(seen, wanted),
        step=_step(seen - wanted),
        **(_whole_numbers(got, expected, wrong) if integers else {}),
    )


def _whole_numbers(got: Tensor, expected: Tensor, wrong: Tensor) -> dict[str, Any]:
    """What tells errors of integers apart: flags, ids, counts and places in tables."""
    low, high = float(expected.min()), float(expected.max())
    width = got.shape[-1] if got.ndim else 1
    rows = wrong.reshape(-1, width).any(1)
    values, references = got.reshape(-1, width)[rows], expected.reshape(-1, width)[rows]
    return {
        "span": [low, high],
        "outside": int((wrong & ((got < low) | (got > high))).sum()),
        "reordered": bool(torch.equal(values.sort(1).values, references.sort(1).values)),
    }


def _step(steps: Tensor) -> float | None:
    same = len(steps) >= ENOUGH and bool((steps == steps[0]).all())
    return float(steps[0]) if same else None


def _scaled(seen: Tensor, wanted: Tensor) -> int:
    mantissa = torch.frexp((seen / wanted).abs()).mantissa
    return int(((mantissa == 0.5) | (wanted == 0)).sum())


def _correlation(seen: Tensor, wanted: Tensor) -> float | None:
    if seen.numel() < FEWEST:
        return None
    left, right = seen - seen.mean(), wanted - wanted.mean()
    size = float(left.norm() * right.norm())
    return float(left @ right) / size if size and math.isfinite(size) else None


def _ratio(seen: Tensor, wanted: Tensor, *, exact: bool) -> float | None:
    ratios = seen / wanted  # infinite where something stands in the place of zero, which no factor explains
    if exact or ratios.numel() < FEWEST:
        same = ratios.numel() >= ENOUGH and bool((ratios == ratios[0]).all() & ratios[0].isfinite())
        return float(ratios[0]) if same else None
    middle = float(ratios.median())
    alike = (ratios - middle).abs() <= 0.01 * abs(middle)
    return middle if float(alike.double().mean()) > 0.95 else None


def _moved_rows(got: Tensor, expected: Tensor, wrong: Tensor) -> tuple[int, int, int | None]:
    """How many of some wrong rows are the reference of another row, how many were looked up, their common distance."""
    if got.ndim < 2 or got.shape[-1] < FEWEST:
        return 0, 0, None
    rows, references = got.reshape(-1, got.shape[-1]), expected.reshape(-1, got.shape[-1])
    numbers = (2 * wrong.reshape(rows.shape).sum(1) > rows.shape[1]).nonzero().flatten()
    numbers = numbers[torch.isfinite(rows[numbers]).all(1)]
    numbers = numbers[:: max(1, len(numbers) // SAMPLED_ROWS)][:SAMPLED_ROWS]
    if not len(numbers):
        return 0, 0, None
    sample, all_rows = rows[numbers].float(), references.float()
    sizes = all_rows.square().sum(1)
    distances = sizes[None, :] - 2 * sample @ all_rows.mT + sample.square().sum(1, keepdim=True)
    nearest, places = distances.nan_to_num(nan=torch.inf).min(1)  # a reference may hold NaN
    same = (nearest <= SAME_ROW * sizes[places]) & (places != numbers) & (sizes[places] > 0)
    steps = (places - numbers)[same]
    return len(steps), len(numbers), _common(steps)


def _moved_whole(got: Tensor, expected: Tensor, wrong: Tensor) -> tuple[int, int, int | None]:
    """As :func:`_moved_rows`, for integers: rows must be equal, and so not by chance; a single axis has rows of one."""
    if got.numel() > MOST_LOOKED_UP:
        return 0, 0, None
    width = got.shape[-1] if got.ndim > 1 else 1
    rows, references = got.reshape(-1, width).long(), expected.reshape(-1, width).long()
    numbers = wrong.reshape(rows.shape).any(1).nonzero().flatten()
    numbers = numbers[:: max(1, len(numbers) // SAMPLED_ROWS)][:SAMPLED_ROWS]
    weights = torch.randint(2**62, (width,), generator=torch.Generator().manual_seed(1))
    marks, known = (rows[numbers] * weights).sum(1), (references * weights).sum(1)  # equal rows have equal marks
    steps = [(known == mark).nonzero().flatten() - number for number, mark in zip(numbers, marks, strict=True)]
    nearest = torch.tensor([int(away[away.abs().argmin()]) for away in steps if len(away)], dtype=torch.long)
    common, values = _common(nearest), int(references.max() - references.min()) + 1
    by_chance = width * math.log(values) < math.log(BY_CHANCE * len(known))
    if by_chance and (common is None or len(nearest) < ENOUGH):
        return 0, len(numbers), None
    return len(nearest), len(numbers), common


def _common(steps: Tensor) -> int | None:
    """The distance that nearly all share."""
    if not len(steps):
        return None
    common = int(steps.mode().values)
    return common if float((steps == common).double().mean()) >= COMMON else None
