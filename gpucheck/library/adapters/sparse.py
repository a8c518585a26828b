"""Top-k, routing and fused swiglu of generations v3.6 and later.

Their native top-k returns a sparse matrix whose metadata holds the routing; there is no routing module any more.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from gpucheck.library.adapters.base import Routing, TopK
from gpucheck.library.adapters.common import ascending_experts, require, require_power_of_two

MAX_EXPERTS = 32736  # the kernel keeps expert ids in 15 bits, padded to whole tiles of 32

NativeTopK = Callable[..., Any]
"""The library's ``topk(logits, k, apply_softmax=...)`` -> its sparse matrix."""


def native_topk(topk: NativeTopK, logits: torch.Tensor, k: int) -> Any:
    """The library's sparse matrix of the k largest of each row of (T, E) logits.

    Raises:
        Inapplicable: the library's kernel does not take this k or E.
    """
    require_power_of_two(k)
    experts = logits.shape[1]
    require(experts <= MAX_EXPERTS, f"the library's top-k takes at most {MAX_EXPERTS} experts, not {experts}")
    return topk(logits, k, apply_softmax=True)


def sparse_topk(topk: NativeTopK, logits: torch.Tensor, k: int) -> TopK:
    """See :meth:`gpucheck.library.adapters.base.Adapter.topk`."""
    sparse = native_topk(topk, logits, k)
    return ascending_experts(sparse.vals, sparse.indx)


def sparse_routing(topk: NativeTopK, logits: torch.Tensor, k: int) -> Routing:
    """See :meth:`gpucheck.library.adapters.base.Adapter.route`; slots of a token ascend by expert id.

    Some generations order slots by gate, so flat indices are renumbered. An index outside the range stays as the
    library made it, so that a fault is reported and does not raise here.
    """
    sparse = native_topk(topk, logits, k)
    metadata = sparse.mask_metadata
    order = torch.argsort(sparse.indx.to(torch.int32), dim=1, stable=True)
    slot = torch.argsort(order, dim=1)  # native slot -> slot by expert id
    tokens = torch.arange(logits.shape[0], device=logits.device)[:, None]
    renumbered = (tokens * k + slot).flatten().to(torch.int32)
    native = metadata.col_sorted_indx
    reachable = native.clamp(0, native.numel() - 1).long()
    return Routing(
        histogram=metadata.col_sum,
        to_flat=torch.where(native == reachable, renumbered[reachable], native),
        to_sorted=metadata.row_sorted_indx.view(-1, k).gather(1, order).flatten(),
        gates=sparse.vals.flatten()[reachable].float(),
        experts=logits.shape[1],
        per_token=k,
    )


def fused_swiglu(matmul_module: Any, specialize: ModuleType | Any, function: Any, alpha: float, limit: float) -> Any:
    """The library's fused activation; it caches compiled ones by the name given here and nothing else."""
    specs = specialize.FnSpecs("swiglu", function, ("alpha", "limit"), reduction_n=2)
    return matmul_module.FusedActivation(specs, (alpha, limit))
