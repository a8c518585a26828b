"""The small transformer shared by ranks: each has some heads, a slice of the experts' width and some of the vocabulary.

What a rank computes by itself is judged as it is of a rank alone. A sum over ranks is judged by the parts that the
rank saw of all, which it gathers for that; its own part among them must be the one that it computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gpucheck.checks.decoder.reference import Continue, Reference, Rows, plain
from gpucheck.checks.decoder.shape import UNEMBEDDING, Shape
from gpucheck.checks.operands import BLOCK
from gpucheck.checks.sharded.shares import columns_of_width, rows_of_width, share
from gpucheck.verify import bounds
from gpucheck.verify.bounds import Estimate

ON_ONE_RANK = ("out_bias", "down_bias")
"""Biases behind a sum over ranks, which must have them once."""


def reason_against(shape: Shape, ranks: int) -> str:
    """Why so many ranks cannot share a model, or ""."""
    parts = {"heads": shape.heads, "kv_heads": shape.kv_heads, "vocabulary": shape.vocabulary}
    parts["blocks of 32 of the experts' width"] = shape.intermediate // BLOCK
    uneven = [f"{count} {name}" for name, count in parts.items() if count % ranks]
    return f"{ranks} ranks cannot share {' and '.join(uneven)} evenly" if uneven else ""


def shape_of_one(shape: Shape, ranks: int) -> Shape:
    """What one of so many ranks has."""
    names = ("heads", "kv_heads", "intermediate")
    return replace(shape, ranks=ranks, **{name: getattr(shape, name) // ranks for name in names})


def inputs_of_one(shape: Shape, inputs: dict[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """The weights that one of the ranks has, of those of the whole model; ``unembedding`` are its columns."""
    own = _heads(shape, rank, ranks)
    part = share(shape.intermediate, rank, ranks, BLOCK)
    made = {name: inputs[name][..., own] for name in ("qkv", "qkv_bias")}
    made["sinks"] = inputs["sinks"][:, share(shape.heads, rank, ranks)]
    made["out"] = inputs["out"][:, own[: shape.heads // ranks * shape.head_dim]]
    made |= {name: columns_of_width(inputs[name], part) for name in ("up", "up_scale", "up_bias")}
    made |= {name: rows_of_width(inputs[name], part, per) for name, per in (("down", 2), ("down_scale", BLOCK))}
    made |= {name: inputs[name] if rank == 0 else torch.zeros_like(inputs[name]) for name in ON_ONE_RANK}
    made[UNEMBEDDING] = inputs[UNEMBEDDING][:, share(shape.vocabulary, rank, ranks)]
    return {**inputs, **{name: value.contiguous() for name, value in made.items()}}


def _heads(shape: Shape, rank: int, ranks: int) -> Tensor:
    """The columns of queries, keys and values that one of the ranks has."""
    columns, first = [], 0
    for heads in (shape.heads, shape.kv_heads, shape.kv_heads):
        own = share(heads, rank, ranks)
        columns.append(torch.arange(first + own.start * shape.head_dim, first + own.stop * shape.head_dim))
        first += heads * shape.head_dim
    return torch.cat(columns)


def recorded_by_one(shape: Shape, whole: dict[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """What one of the ranks records of a decoding that is recorded as a whole."""
    own = _heads(shape, rank, ranks)
    turned = own[: (shape.heads + shape.kv_heads) // ranks * shape.head_dim]
    made = {**whole, "qkv": whole["qkv"][..., own], "rope": whole["rope"][..., turned]}
    for name, operation in (("attention",) * 2, ("experts up",) * 2, ("unembedding part", UNEMBEDDING)):
        made[name] = whole[operation].chunk(ranks, -1)[rank]
    for operation in ("attention out", "experts down"):
        made[f"{operation} part"] = whole[f"{operation} parts"][:, :, rank]
    return made


class OfOneRank(Reference):
    """What a rank must make of what it recorded."""

    def __init__(self, shape: Shape, inputs: dict[str, Tensor], recorded: Mapping[str, Tensor], rank: int, ranks: int):
        """Args:
        shape: of the whole model, as the inputs are.
        """
        super().__init__(shape_of_one(shape, ranks), inputs_of_one(shape, inputs, rank, ranks))
        self._recorded, self._rank, self._all_columns = recorded, rank, inputs[UNEMBEDDING]

    def _attention_out(self, layer: int, mixed: Tensor, proceed: Continue) -> Tensor:
        part = proceed("attention out part", layer, self.linear("out", layer, mixed))
        return self._summed("attention out", layer, part, proceed)

    def _experts_down(self, layer: int, inner: Estimate, rows: Rows, proceed: Continue) -> Tensor:
        part = proceed("experts down part", layer, self.down(layer, inner, rows))
        return self._summed("experts down", layer, part, proceed)

    def _summed(self, operation: str, layer: int, part: Tensor, proceed: Continue) -> Tensor:
        gathered = self._recorded[f"{operation} parts"][:, layer].double()
        own = gathered.clone()
        own[:, self._rank] = part
        proceed(f"{operation} parts", layer, Estimate(own, None))
        return proceed(operation, layer, bounds.reduced(gathered, 1, self.caller.dtype_of(operation)))

    def _logits(self, x: Tensor, proceed: Continue) -> Tensor:
        weights = (self.inputs[UNEMBEDDING], self._all_columns)
        own, every = (bounds.product(plain(x), plain(weight.double())) for weight in weights)
        proceed(f"{UNEMBEDDING} part", None, own)
        return proceed(UNEMBEDDING, None, every)


class OfAllRanks(Reference):
    """What all ranks make together, one beside the other."""

    def __init__(self, shape: Shape, inputs: dict[str, Tensor], ranks: int) -> None:
        super().__init__(shape, inputs)
        own = (inputs_of_one(shape, inputs, rank, ranks) for rank in range(ranks))
        self._ranks = [Reference(shape_of_one(shape, ranks), each) for each in own]

    def _attention_out(self, layer: int, mixed: Tensor, proceed: Continue) -> Tensor:
        parts = [rank.linear("out", layer, x) for rank, x in zip(self._ranks, self._cut(mixed), strict=True)]
        return self._summed("attention out", layer, parts, proceed)

    def _experts_down(self, layer: int, inner: Estimate, rows: Rows, proceed: Continue) -> Tensor:
        assert inner.error is not None
        cut = zip(self._ranks, self._cut(inner.value), self._cut(inner.error), strict=True)
        parts = [rank.down(layer, Estimate(value, error), rows) for rank, value, error in cut]
        return self._summed("experts down", layer, parts, proceed)

    def _cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.chunk(len(self._ranks), -1)

    def _summed(self, operation: str, layer: int, parts: list[Estimate], proceed: Continue) -> Tensor:
        errors = [part.error for part in parts if part.error is not None]
        stacked = Estimate(torch.stack([part.value for part in parts], 1), torch.stack(errors, 1))
        gathered = proceed(f"{operation} parts", layer, stacked)
        return proceed(operation, layer, bounds.reduced(gathered, 1, self.caller.dtype_of(operation)))
