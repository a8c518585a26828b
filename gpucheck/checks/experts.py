"""Which expert computes which row: making expert loads, sorting rows by expert, and products expert by expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from gpucheck.checks.operands import plain_weight, size
from gpucheck.library.adapters.base import Routing
from gpucheck.verify.bounds import Estimate

if TYPE_CHECKING:
    from gpucheck.library.adapters.base import Adapter

Compute = Callable[[int, Estimate], Estimate]
"""What an expert makes of its rows."""
BLOCK_SIZES = (16, 32, 64, 128, 256) if torch.version.hip else (16, 32, 64, 128)
"""Rows of a block, of those that the library schedules routed products by."""
TABLES = ("histogram", "to_flat", "to_sorted", "gates")
"""The tensors of a :class:`Routing`."""
SCHEDULE = ("rows", "row_offsets", "block_offsets", "block_map", "scatter_to_flat", "scatter_to_sorted")
"""The tables of a :class:`gpucheck.library.adapters.base.Schedule`."""


def choose(tokens: int, experts: int, per_token: int, load: str, generator: Generator) -> Tensor:
    """Expert ids (T, k) int64, distinct and ascending within a token.

    Args:
        load: ``random``; ``skewed``: one expert in every token and the upper half of the rest never used;
            ``one``: every token uses the same k experts.
    """
    if load == "one":
        return torch.arange(experts - per_token, experts).expand(tokens, per_token).clone()
    scores = torch.rand((tokens, experts), generator=generator)
    if load == "skewed":
        scores[:, experts // 2 :] = -1.0
        scores[:, experts // 3] = 2.0
    return scores.topk(per_token, dim=-1).indices.sort(dim=-1).values


def tables(ids: Tensor, gates: Tensor, experts: int) -> dict[str, Tensor]:
    """The routing of (T, k) expert ids and gates as plain tensors, see :class:`Routing`; an id of -1 is no expert's.

    Gates of rows without a position come last and mean nothing.
    """
    flat = ids.flatten()
    to_flat = torch.sort(torch.where(flat < 0, experts, flat), stable=True).indices
    served = int((flat >= 0).sum())
    to_sorted = torch.full_like(to_flat, -1)
    to_sorted[to_flat[:served]] = torch.arange(served)
    sorted_gates = gates.flatten()[to_flat].to(torch.float32)
    to_flat[served:] = -1
    return {
        "histogram": torch.bincount(flat[flat >= 0], minlength=experts).to(torch.int32),
        "to_flat": to_flat.to(torch.int32),
        "to_sorted": to_sorted.to(torch.int32),
        "gates": sorted_gates,
    }


def choices(ids: Tensor, gates: Tensor, experts: int) -> dict[str, Tensor]:
    """The inputs of a routed case: choices as a server's top-k gives them, and :func:`tables` for the reference."""
    given = {"ids": ids.to(torch.int32), "id_gates": gates.to(torch.float32)}
    return {**tables(ids, gates, experts), **given}


def routing(
    inputs: dict[str, Tensor], library: Adapter, experts: int, sort: str, partial: bool = False
) -> Callable[[], Routing]:
    """Gives the :class:`Routing` of inputs that hold :func:`choices`, with the library's own objects.

    The first call makes it. So the library's kernels run as the others of a launch do: in watched memory, and once
    for all that is timed.

    Args:
        sort: ``given``: the tables are, and the library makes its block map of them; ``library``: it makes all.
        partial: another rank holds some of the experts.
    """

    def make() -> Routing:
        if sort == "library":
            return library.routed(inputs["ids"], inputs["id_gates"], experts, partial)
        histogram, to_flat, to_sorted, gates = (inputs[name] for name in TABLES)
        given = Routing(histogram, to_flat, to_sorted, gates, experts, inputs["ids"].shape[1], partial)
        return replace(given, native=library.from_tables(given))

    return cache(make)


def whole(tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """The integer tables of a routing and the ones of SCHEDULE that follow from them, int64.

    The map has room for the most blocks of the smallest size that so many rows can make with so many experts.
    """
    rows, to_flat, to_sorted = (tables[name].long() for name in ("histogram", "to_flat", "to_sorted"))
    experts, total = rows.numel(), to_flat.numel()
    room = total if total <= experts else experts - 1 - ((experts - total - 1) // BLOCK_SIZES[0])
    offsets = torch.stack([_running(-(-rows // size)) for size in BLOCK_SIZES])
    blocks = torch.stack([_block_map(each, room) for each in offsets])
    return {
        "histogram": rows,
        "to_flat": to_flat,
        "to_sorted": to_sorted,
        "rows": rows,
        "row_offsets": _running(rows),
        "block_offsets": offsets,
        "block_map": blocks,
        "scatter_to_flat": to_flat,
        "scatter_to_sorted": to_sorted,
    }


def _block_map(offsets: Tensor, room: int) -> Tensor:
    """(room,): program -> expert + (block of the expert << 16), or -1; from each expert's first block (E+1,)."""
    programs = torch.arange(room)
    expert = torch.searchsorted(offsets[1:], programs, right=True).clamp_max(offsets.numel() - 2)
    return torch.where(programs < offsets[-1], expert + ((programs - offsets[expert]) << 16), -1)


def _running(counts: Tensor) -> Tensor:
    """0 and the running sums of counts (E,): (E+1,)."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def served(inputs: dict[str, Tensor]) -> int:
    """How many rows the experts here have."""
    return int(inputs["histogram"].sum())


def owners(inputs: dict[str, Tensor]) -> Tensor:
    """Expert of each expert-sorted row: (rows, 1) int64."""
    histogram = inputs["histogram"].long()
    return torch.repeat_interleave(torch.arange(histogram.numel()), histogram)[:, None]


def by_token(sorted_rows: Tensor, inputs: dict[str, Tensor], per_token: int) -> Tensor:
    """Expert-sorted rows (R, ...) in token order (T, k, ...); -1 stands for those without a position."""
    none = sorted_rows.new_full((1, *sorted_rows.shape[1:]), -1)
    flat = torch.cat([sorted_rows, none])[inputs["to_sorted"].long()]
    return flat.reshape(-1, per_token, *sorted_rows.shape[1:])


def own_choices(ids: Tensor, experts: int) -> Tensor:
    """Ids of this rank's experts, which are the first ones; -1 for those that other ranks hold."""
    return torch.where(ids < experts, ids, -1)


def rows_of(x: Estimate, inputs: dict[str, Tensor], per_token: int, gather: bool) -> Estimate:
    """The expert-sorted rows that the experts here have, of token rows with ``gather``, else of all sorted rows."""
    return take(x, tokens_of(inputs, per_token) if gather else torch.arange(served(inputs)))


def tokens_of(inputs: dict[str, Tensor], per_token: int) -> Tensor:
    """The token of each expert-sorted row that the experts here have: (rows,) int64."""
    return inputs["to_flat"][: served(inputs)].long() // per_token


def to_tokens(rows: Estimate, inputs: dict[str, Tensor], per_token: int) -> Estimate:
    """:func:`in_token_order` of an estimate."""
    error = None if rows.error is None else in_token_order(rows.error, inputs, per_token)
    return Estimate(in_token_order(rows.value, inputs, per_token), error, rows.unit)


def in_token_order(rows: Tensor, inputs: dict[str, Tensor], per_token: int) -> Tensor:
    """Expert-sorted rows (R, N) in token order (T, k, N); zeros for those that other ranks have."""
    index = inputs["to_sorted"].long()
    if len(rows) < index.numel():
        rows = torch.nn.functional.pad(rows, (0, 0, 0, 1))  # the index -1 takes the last row
    return rows[index].view(-1, per_token, rows.shape[-1])


def take(x: Estimate, index: Tensor, shape: tuple[int, ...] | None = None) -> Estimate:
    """Rows ``index`` of an estimate, reshaped to ``shape`` where given."""

    def pick(values: Tensor) -> Tensor:
        rows = values[index]
        return rows if shape is None else rows.reshape(shape)

    return Estimate(pick(x.value), None if x.error is None else pick(x.error), x.unit)


def each_expert(x: Estimate, inputs: dict[str, Tensor], columns: int, compute: Compute) -> Estimate:
    """Applies ``compute(expert, its rows)`` to the expert-sorted rows (R, K) of ``x`` -> (R, columns)."""
    value = torch.zeros((x.value.shape[0], columns), dtype=torch.float64)
    error = None if x.error is None else torch.zeros_like(value)
    unit = x.unit
    for expert, rows in spans(inputs):
        part = compute(expert, Estimate(x.value[rows], None if x.error is None else x.error[rows], x.unit))
        value[rows], unit = part.value, part.unit
        if error is not None:
            assert part.error is not None
            error[rows] = part.error
    return Estimate(value, error, unit)


def spans(inputs: dict[str, Tensor]) -> list[tuple[int, slice]]:
    """The experts that have rows, each with its rows in expert-sorted order."""
    found, start = [], 0
    for expert, count in enumerate(inputs["histogram"].tolist()):
        if count:
            found.append((expert, slice(start, start + count)))
        start += count
    return found


def plain_weights(kind: str, inputs: dict[str, Tensor], name: str) -> dict[int, Tensor]:
    """:func:`gpucheck.checks.operands.plain_weight` (K, N) of each expert that has rows."""
    scales = inputs.get(f"{name}_scale") if kind.startswith("mx") else None
    used = (expert for expert, _ in spans(inputs))
    return {e: plain_weight(kind, inputs[name][e], None if scales is None else scales[e]) for e in used}


def used_bytes(weight: Tensor, histogram: Tensor) -> float:
    """Bytes of a weight or bias (E, ...) of the experts that have rows: nobody needs the others."""
    return size(weight) * int((histogram > 0).sum()) / max(histogram.numel(), 1)
