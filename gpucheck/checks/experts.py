"""Which expert computes which row: making expert loads, sorting rows by expert, and products expert by expert."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from gpucheck.library.adapters.base import Routing
from gpucheck.verify.bounds import Estimate

Compute = Callable[[int, Estimate], Estimate]
"""What an expert makes of its rows."""


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
    """The routing of (T, k) expert ids and gates as plain tensors, see :class:`Routing`."""
    to_flat = torch.sort(ids.flatten(), stable=True).indices
    to_sorted = torch.empty_like(to_flat)
    to_sorted[to_flat] = torch.arange(to_flat.numel())
    return {
        "histogram": torch.bincount(ids.flatten(), minlength=experts).to(torch.int32),
        "to_flat": to_flat.to(torch.int32),
        "to_sorted": to_sorted.to(torch.int32),
        "gates": gates.flatten()[to_flat].to(torch.float32),
    }


def routing(inputs: dict[str, Tensor], experts: int, per_token: int) -> Routing:
    """The :class:`Routing` of inputs that hold :func:`tables`."""
    return Routing(
        inputs["histogram"],
        inputs["to_flat"],
        inputs["to_sorted"],
        inputs["gates"],
        experts=experts,
        per_token=per_token,
    )


def owners(inputs: dict[str, Tensor]) -> Tensor:
    """Expert of each expert-sorted row: (rows, 1) int64."""
    histogram = inputs["histogram"].long()
    return torch.repeat_interleave(torch.arange(histogram.numel()), histogram)[:, None]


def by_token(sorted_rows: Tensor, inputs: dict[str, Tensor], per_token: int) -> Tensor:
    """Expert-sorted rows (T*k, ...) in token order (T, k, ...)."""
    flat = sorted_rows[inputs["to_sorted"].long()]
    return flat.reshape(-1, per_token, *sorted_rows.shape[1:])


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
    unit, start = x.unit, 0
    for expert, count in enumerate(inputs["histogram"].tolist()):
        if not count:
            continue
        rows = slice(start, start + count)
        part = compute(expert, Estimate(x.value[rows], None if x.error is None else x.error[rows], x.unit))
        value[rows], unit = part.value, part.unit
        if error is not None:
            assert part.error is not None
            error[rows] = part.error
        start += count
    return Estimate(value, error, unit)
