"""Which part of an expert block a rank holds where several ranks share it, by the columns and experts of a checkpoint.

Tensor parallel ranks share the width between the two products, in whole blocks of mxfp4: each has as many as divide the
width rounded up, the last has what is left. Expert parallel ranks share the experts evenly, in order. Every engine
divides so; the sum over the ranks is the block, whose second bias the first tensor parallel rank alone adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 32  # values that share a scale; no rank's part cuts one


@dataclass(frozen=True)
class Part:
    """What one rank of a group holds of a block."""

    group: str  # "tp" or "ep"; "" where one rank holds all
    index: int  # of the rank in its group
    columns: slice  # of the width between the products
    experts: slice
    bias: bool  # whether it adds the bias of the second product

    @property
    def output(self) -> str:
        """What the output of this rank is called."""
        return f"y_{self.group}{self.index}" if self.group else "y"

    @property
    def words(self) -> str:
        """What follows the name of a tensor that it holds."""
        return f", {self.group} rank {self.index}" if self.group else ""

    def held(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a block, cut to this part."""
        from gpucheck.checks.sharded.shares import columns_of_width, rows_of_width

        own = {name: inputs[name][self.experts] for name in ("up", "up_scale", "up_bias", "down", "down_scale")}
        cut = {name: columns_of_width(own[name], self.columns) for name in ("up", "up_scale", "up_bias")}
        for name, per in (("down", 2), ("down_scale", BLOCK)):  # a byte holds two values
            cut[name] = rows_of_width(own[name], self.columns, per)
        return {**inputs, **cut, "down_bias": inputs["down_bias"][self.experts] * self.bias}


def parts(params: Mapping[str, Any]) -> list[Part]:
    """The part of each rank, for the parameters of a case; one that holds all, where no ranks share the block."""
    width, count, tp, ep = (int(params.get(name, 1)) for name in ("intermediate", "experts", "tp", "ep"))
    share, experts = -(-width // (tp * BLOCK)) * BLOCK, count // ep
    return [
        Part(
            group="tp" if tp > 1 else "ep" if ep > 1 else "",
            index=owner * tp + rank,
            columns=slice(rank * share, min((rank + 1) * share, width)),
            experts=slice(owner * experts, (owner + 1) * experts),
            bias=rank == 0,
        )
        for owner in range(ep)
        for rank in range(tp)
    ]


def refusal(params: Mapping[str, Any]) -> str | None:
    """Why ranks cannot share the block so, or None."""
    for name in ("tp", "ep"):
        if params[name] < 1:
            return f"{name} must be at least 1, not {params[name]}"
    if params["tp"] > 1 and params["ep"] > 1:
        return "ranks share either the experts or the width of each: one of tp and ep must be 1"
    if params["experts"] % params["ep"] or params["intermediate"] % params["tp"]:
        return "ep must divide the experts, and tp the intermediate size"
    if any(part.columns.start >= part.columns.stop for part in parts(params)):
        return f"with tp {params['tp']} a rank would have no block of {BLOCK} columns of {params['intermediate']}"
    return None
