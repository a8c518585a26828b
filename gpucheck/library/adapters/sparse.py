"""Top-k, routing and fused swiglu of generations v3.6 and later.

Their native top-k returns a sparse matrix whose metadata holds the routing; there is no routing module any more.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gpucheck.library.adapters.base import Routing, Schedule, TopK
from gpucheck.library.adapters.common import ascending_experts, bit_matrix, require, require_power_of_two
from gpucheck.library.adapters.expert_exchange import ExchangeSizes, ExpertExchange, LibraryExchange
from gpucheck.library.adapters.matmul_adapter import MatmulAdapter

MAX_EXPERTS = 32736  # the kernel keeps expert ids in 15 bits, padded to whole tiles of 32
ROUTING_KERNELS = ("_bitmatrix_metadata_compute_stage2",)


class SparseRoutingAdapter(MatmulAdapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`; its products are left open."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.specialize: Any = import_module("triton_kernels.specialize")

    @abstractmethod
    def bits(self, words: torch.Tensor, experts: int) -> Any:
        """The library's tensor of :func:`gpucheck.library.adapters.common.bit_matrix`."""

    @abstractmethod
    def ragged_metadata(self, routing: Routing) -> Any:
        """The library's offsets and block map of the rows of each expert, as products take it."""

    def block_rows(self) -> Sequence[int]:
        sizes: Sequence[int] = self.tensor.RaggedTensorMetadata.block_sizes()
        return sizes

    def fused_swiglu(self, alpha: float, limit: float) -> Any:
        """The library caches compiled activations by the name given here and nothing else."""
        function = self.swiglu_module.swiglu_fn
        specs = self.specialize.FnSpecs("swiglu", function, ("alpha", "limit"), reduction_n=2)
        return self.matmul_module.FusedActivation(specs, (alpha, limit))

    def topk(self, logits: torch.Tensor, k: int, *, over_all: bool = False) -> TopK:
        sparse = self._native_topk(logits, k, over_all)
        return ascending_experts(sparse.vals, sparse.indx)

    def route(self, logits: torch.Tensor, k: int, *, over_all: bool = False) -> Routing:
        sparse = self._native_topk(logits, k, over_all)
        return by_expert_id(self._routing(sparse, logits.shape[1]), sparse.indx)

    def routed(self, ids: torch.Tensor, gates: torch.Tensor, experts: int, partial: bool = False) -> Routing:
        bits = self.bits(bit_matrix(ids, experts), experts)
        sparse = self.tensor.SparseMatrix(indx=ids.to(torch.int16), vals=gates, mask=bits)
        return replace(self._routing(sparse, experts), partial=partial)

    def exchange(self, sizes: ExchangeSizes, device: torch.device) -> ExpertExchange:
        return LibraryExchange(sizes, device)

    def _native_topk(self, logits: torch.Tensor, k: int, over_all: bool) -> Any:
        """The library's sparse matrix of the k largest of each row of (T, E) logits.

        Raises:
            Inapplicable: the library's kernel does not take this k or E.
        """
        require_power_of_two(k)
        experts = logits.shape[1]
        require(experts <= MAX_EXPERTS, f"the library's top-k takes at most {MAX_EXPERTS} experts, not {experts}")
        given = torch.softmax(logits, dim=-1) if over_all else logits
        return self.topk_module.topk(given, k, apply_softmax=not over_all)

    def _routing(self, sparse: Any, experts: int) -> Routing:
        """The tables that the library made of a sparse matrix of (T, k) chosen experts, in the order of its slots."""
        metadata = sparse.mask_metadata
        order = metadata.col_sorted_indx
        routing = Routing(
            histogram=metadata.col_sum,
            to_flat=order,
            to_sorted=metadata.row_sorted_indx,
            gates=sparse.vals.flatten()[_reachable(order)],
            experts=experts,
            per_token=sparse.indx.shape[1],
        )
        return replace(routing, native=self.from_tables(routing))

    def schedule(self, routing: Routing) -> Schedule:
        """What results are scattered by are the tables."""
        metadata = self.ragged_metadata(routing)
        return Schedule(
            rows=metadata.slice_sizes,
            row_offsets=metadata.slice_offs,
            block_sizes=tuple(metadata.block_sizes()),
            block_offsets=metadata.block_offs_data.contiguous(),
            block_map=metadata.block_schedule_data.contiguous(),
            scatter_to_flat=routing.to_flat,
            scatter_to_sorted=routing.to_sorted,
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
