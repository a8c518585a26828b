"""Top-k, routing and fused swiglu of generations v3.6 and later.

Their native top-k returns a sparse matrix whose metadata holds the routing; there is no routing module any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from gpucheck.library.adapters.base import Routing, Schedule, TopK
from gpucheck.library.adapters.common import ascending_experts, require, require_power_of_two

MAX_EXPERTS = 32736  # the kernel keeps expert ids in 15 bits, padded to whole tiles of 32

NativeTopK = Callable[..., Any]
"""The library's ``topk(logits, k, apply_softmax=...)`` -> its sparse matrix."""


def native_topk(topk: NativeTopK, logits: torch.Tensor, k: int, over_all: bool) -> Any:
    """The library's sparse matrix of the k largest of each row of (T, E) logits.

    Raises:
        Inapplicable: the library's kernel does not take this k or E.
    """
    require_power_of_two(k)
    experts = logits.shape[1]
    require(experts <= MAX_EXPERTS, f"the library's top-k takes at most {MAX_EXPERTS} experts, not {experts}")
    if over_all:
        return topk(torch.softmax(logits, dim=-1), k, apply_softmax=False)
    return topk(logits, k, apply_softmax=True)


def sparse_topk(topk: NativeTopK, logits: torch.Tensor, k: int, over_all: bool) -> TopK:
    """See :meth:`gpucheck.library.adapters.base.Adapter.topk`."""
    sparse = native_topk(topk, logits, k, over_all)
    return ascending_experts(sparse.vals, sparse.indx)


def sparse_routing(sparse: Any, experts: int) -> Routing:
    """The tables that the library made of a sparse matrix of (T, k) chosen experts, in the order of its slots."""
    metadata = sparse.mask_metadata
    order = metadata.col_sorted_indx
    return Routing(
        histogram=metadata.col_sum,
        to_flat=order,
        to_sorted=metadata.row_sorted_indx,
        gates=sparse.vals.flatten()[_reachable(order)],
        experts=experts,
        per_token=sparse.indx.shape[1],
    )


def by_expert_id(routing: Routing, ids: torch.Tensor) -> Routing:
    """Flat indices renumbered so that the slots of a token ascend by expert id; some generations order them by gate.

    The library's objects stay as they are. An index outside the range stays too, so that a fault is reported and does
    not raise here.

    Args:
        ids: (T, k) experts in the order of the library's slots.
    """
    tokens, k = ids.shape
    order = torch.argsort(ids.to(torch.int32), dim=1, stable=True)
    slot = torch.argsort(order, dim=1)  # native slot -> slot by expert id
    renumbered = (torch.arange(tokens, device=ids.device)[:, None] * k + slot).flatten().to(torch.int32)
    native = routing.to_flat
    reachable = _reachable(native)
    return replace(
        routing,
        to_flat=torch.where(native == reachable, renumbered[reachable], native),
        to_sorted=routing.to_sorted.view(-1, k).gather(1, order).flatten(),
    )


def _reachable(index: torch.Tensor) -> torch.Tensor:
    return index.clamp(0, index.numel() - 1).long()


def ragged_schedule(metadata: Any, routing: Routing) -> Schedule:
    """See :meth:`gpucheck.library.adapters.base.Adapter.schedule`; what results are scattered by are the tables."""
    return Schedule(
        rows=metadata.slice_sizes,
        row_offsets=metadata.slice_offs,
        block_sizes=tuple(metadata.block_sizes()),
        block_offsets=metadata.block_offs_data.contiguous(),
        block_map=metadata.block_schedule_data.contiguous(),
        scatter_to_flat=routing.to_flat,
        scatter_to_sorted=routing.to_sorted,
    )


def fused_swiglu(matmul_module: Any, specialize: ModuleType | Any, function: Any, alpha: float, limit: float) -> Any:
    """The library's fused activation; it caches compiled ones by the name given here and nothing else."""
    specs = specialize.FnSpecs("swiglu", function, ("alpha", "limit"), reduction_n=2)
    return matmul_module.FusedActivation(specs, (alpha, limit))
