"""What a check tells the judge: the right outputs, and how to name places in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.verify.bounds import Estimate


FIXED = "Model gives the same outputs for other inputs: a candidate that ignores its inputs is right"


@dataclass(frozen=True)
class Expected:
    """The reference of one output.

    estimate: value and bound; outputs of integer dtype are compared exactly.
    dtype: what the output must have.
    basis: how the bound of the estimate came about, in words, where it is not derived in this project.
    alternatives: other wholly right answers, e.g. a second documented way to round ties; the output must match one
        of them everywhere, not a mixture.
    unknown: bool, of the shape of the value: elements that nothing can be said of, because what they were computed
        from is wrong beyond use; None where there are none.
    also: uint8, of the shape of the value: which of ``INF``, ``MINUS_INF`` and ``NAN`` of
        :mod:`gpucheck.verify.extremes` each element may be as well; None where the value and its bound say it all.
    indifferent: that other inputs change the output by less than its bound, in words; FIXED where they change no bit.
    """

    estimate: Estimate
    dtype: torch.dtype
    alternatives: tuple[Estimate, ...] = ()
    basis: str = ""
    unknown: Tensor | None = None
    also: Tensor | None = None
    indifferent: str = ""

    def widened(self) -> Expected:
        """The same with values of float64, which exact ones may not be."""
        return replace(
            self, estimate=self.estimate.widened(), alternatives=tuple(each.widened() for each in self.alternatives)
        )


def indifference(expected: Mapping[str, Expected]) -> str:
    """What all outputs say of other inputs, see ``Expected.indifferent``."""
    words = {item.indifferent for item in expected.values()}
    return words.pop() if len(words) == 1 else ""


@dataclass(frozen=True)
class Axes:
    """How people name places in an output: the words a region is reported in.

    names: one word an axis, e.g. ("token", "column").
    tile: extent of a tile along each axis; 0 means the axis is not tiled.
    owners: for an axis-0 grouping, word -> (rows, n) int array; row r belongs to each owner in its row, -1 to none.
    """

    names: tuple[str, ...]
    tile: tuple[int, ...]
    owners: Mapping[str, Tensor] = field(default_factory=dict)


def plain_axes(count: int) -> Axes:
    """How places are named in an output that a check has no words for."""
    words = ("batch", "channel", "row", "column")
    usual = words[-count:] if count in (2, 4) else ("batch", "row", "column") if count == 3 else ()
    names = usual or tuple(f"place on axis {number}" for number in range(count))
    return Axes(names, (0,) * count)
