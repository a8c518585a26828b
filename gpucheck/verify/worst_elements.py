"""A close look at one output: its worst elements, value by value and bit by bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpucheck.verify import bounds, judge
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.digest import integers
from gpucheck.verify.expected import Axes, Expected
from gpucheck.verify.regions import index_of

MOST_ELEMENTS = 16


def worst_elements(output: Tensor, reference: Expected, axes: Axes) -> list[dict[str, Any]]:
    """The wrong elements of an output that has the form of its reference, the worst first, as plain data.

    Each has ``index``, ``expected`` (float64), ``got`` (None for NaN), both as the bits that the output's dtype has for
    them, ``ulps`` (None where that says nothing), ``bound`` (0 where no error is allowed) and ``tile``.
    """
    estimate, wrong, ratio = judge.closest(output, reference)
    order = judge.badness(output, estimate, wrong, ratio).flatten()
    wrong_ones = wrong.flatten().nonzero().flatten()
    ranked = wrong_ones[order[wrong_ones].argsort(descending=True, stable=True)]
    return [_element(output, estimate, place, axes) for place in ranked[:MOST_ELEMENTS].tolist()]


def _element(output: Tensor, estimate: Estimate, place: int, axes: Axes) -> dict[str, Any]:
    index = index_of(place, output.shape)
    value, got = estimate.value[index], output[index]
    distance = float((got.double() - value).abs().nan_to_num(nan=torch.inf))
    floating = output.dtype.is_floating_point
    return {
        "index": list(index),
        "expected": float(value),
        "got": None if bool(torch.isnan(got.double())) else float(got),
        "expected_bits": _bits(judge.target(output.dtype, value)),
        "got_bits": _bits(got),
        "ulps": judge.ulps(output.dtype, distance, value) if floating else None,
        "bound": 0.0 if not floating else float(allowed(output.dtype, estimate)[index]),
        "tile": [i // size for i, size in zip(index, axes.tile, strict=True) if size],
    }


def allowed(dtype: torch.dtype, estimate: Estimate) -> Tensor:
    """The largest error of each element of a right output of a floating dtype; 0 where none is allowed."""
    if estimate.error is None:
        return torch.zeros_like(estimate.value)
    return bounds.tolerance(dtype, estimate.value, estimate.error)


def _bits(element: Tensor) -> str:
    """``0xc37a``, as many digits as the dtype has."""
    size = element.element_size()
    return f"0x{int(integers(element.reshape(1))) % 2 ** (8 * size):0{2 * size}x}"
