"""Who has what when ranks share an expert block: slices of the width, experts and tokens, in order of rank.

The reference is computed by this file, and so is what each rank cuts out; which rank it is, each asks on its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpucheck.checks.operands import BLOCK


def share(total: int, rank: int, size: int, unit: int = 1) -> slice:
    """The part of ``total`` that a rank has: whole units, as equal as they can be, the later ranks more."""
    assert total % unit == 0, (total, unit)
    count = total // unit
    return slice(count * rank // size * unit, count * (rank + 1) // size * unit)


def width_share(intermediate: int, rank: int, size: int) -> slice:
    """The slice of the width between both products: whole blocks of mx scales, which no slice may cut."""
    return share(intermediate, rank, size, BLOCK)


def owners(experts: int, size: int) -> Tensor:
    """The rank that holds each expert: (E,) int64."""
    held = [share(experts, rank, size) for rank in range(size)]
    return torch.repeat_interleave(torch.arange(size), torch.tensor([each.stop - each.start for each in held]))


def local_ids(ids: Tensor, held: slice) -> Tensor:
    """Expert ids of the model as numbers in the table of a rank that holds a slice of them; -1 where it has none."""
    return torch.where((ids >= held.start) & (ids < held.stop), ids - held.start, -1)


def of_width(inputs: dict[str, Tensor], part: slice, *, with_bias: bool) -> dict[str, Tensor]:
    """The weights of one rank under tensor parallelism: columns of the first product, rows of the second.

    Args:
        inputs: of :func:`gpucheck.checks.sharded.exact_block.make`.
        part: of the width; each of its places has two columns of the first product, gate and linear.
        with_bias: this rank adds the second bias: the sum over ranks must have it once.
    """
    packed = 2 if inputs["w2"].dtype == torch.uint8 else 1
    columns, rows = ("w1", "w1_scale", "bias1"), {"w2": packed, "w2_scale": BLOCK}
    made: dict[str, Tensor] = {name: columns_of_width(inputs[name], part) for name in columns if name in inputs}
    made |= {name: rows_of_width(inputs[name], part, per) for name, per in rows.items() if name in inputs}
    made["bias2"] = inputs["bias2"] if with_bias else torch.zeros_like(inputs["bias2"])
    return made


def columns_of_width(weight: Tensor, part: slice) -> Tensor:
    """The columns of a first product, its scales or its bias (..., 2I) that belong to a part of the width."""
    return weight[..., 2 * part.start : 2 * part.stop]


def rows_of_width(weight: Tensor, part: slice, per: int) -> Tensor:
    """The rows of a second product or its scales (..., I/per, N) that belong to a part of the width."""
    return weight[..., part.start // per : part.stop // per, :]


def of_experts(inputs: dict[str, Tensor], held: slice) -> dict[str, Tensor]:
    """The weights of one rank under expert parallelism."""
    names = ("w1", "w1_scale", "bias1", "w2", "w2_scale", "bias2")
    return {name: inputs[name][held] for name in names if name in inputs}
