"""Generation v3.6 (content C): ``matmul_ogs`` with ragged metadata and without a routing module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import Rounding, Routing, Schedule, TopK
from gpucheck.library.adapters.common import bit_matrix
from gpucheck.library.adapters.matmul_ogs import MatmulOgsAdapter
from gpucheck.library.adapters.sparse import (
    by_expert_id,
    fused_swiglu,
    native_topk,
    ragged_schedule,
    sparse_routing,
    sparse_topk,
)


class AdapterV36(MatmulOgsAdapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`."""

    generation: ClassVar[str] = "v3.6"
    mx_rounding: ClassVar[Rounding] = "even"
    kernels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "matmul": ("_matmul_ogs", "_p_matmul_ogs"),
        "topk": ("_topk_forward",),
        "route": ("_bitmatrix_metadata_compute_stage2",),
        "swiglu": ("_swiglu",),
        "downcast": ("_downcast_to_mxfp",),
        "upcast": ("_upcast_from_mxfp",),
        "reduce": ("_reduce",),  # adds split-k parts and the k rows of a token
    }

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.specialize: Any = import_module("triton_kernels.specialize")
        self.topk_module: Any = import_module("triton_kernels.topk")

    def _swizzled(self, values: Any, scales: Any) -> tuple[Any, Any]:
        """The library's default layouts; this generation pads them itself, for any K and N."""
        axis = len(values.shape) - 2
        value_layout, value_options = self.layout.make_default_matmul_mxfp4_w_layout(mx_axis=axis)
        scale_layout, scale_options = self.layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=axis)
        return (
            self.tensor.convert_layout(values, value_layout, **value_options),
            self.tensor.convert_layout(scales, scale_layout, **scale_options),
        )

    def from_tables(self, routing: Routing) -> tuple[Any, Any, Any]:
        """Routing data, gather and scatter index objects."""
        module = self.matmul_module
        data = module.RoutingData(
            gate_scal=routing.gates,
            expt_hist=routing.histogram,
            n_expts_tot=routing.experts,
            n_expts_act=routing.per_token,
            expt_data=self.tensor.make_ragged_tensor_metadata(routing.histogram, routing.to_flat.numel()),
        )
        gather = module.GatherIndx(src_indx=routing.to_flat, dst_indx=routing.to_sorted)
        scatter = module.ScatterIndx(src_indx=routing.to_sorted, dst_indx=routing.to_flat)
        return data, gather, scatter

    def fused_swiglu(self, alpha: float, limit: float) -> Any:
        return fused_swiglu(self.matmul_module, self.specialize, self.swiglu_module.swiglu_fn, alpha, limit)

    def topk(self, logits: torch.Tensor, k: int, *, over_all: bool = False) -> TopK:
        return sparse_topk(self.topk_module.topk, logits, k, over_all)

    def route(self, logits: torch.Tensor, k: int, *, over_all: bool = False) -> Routing:
        sparse = native_topk(self.topk_module.topk, logits, k, over_all)
        return by_expert_id(self._routing(sparse, logits.shape[1]), sparse.indx)

    def routed(self, ids: torch.Tensor, gates: torch.Tensor, experts: int, partial: bool = False) -> Routing:
        bits = self.tensor.Bitmatrix(bit_matrix(ids, experts), dtype=self.tensor.BIT, shape=[len(ids), experts])
        sparse = self.tensor.SparseMatrix(indx=ids.to(torch.int16), vals=gates, mask=bits)
        return replace(self._routing(sparse, experts), partial=partial)

    def _routing(self, sparse: Any, experts: int) -> Routing:
        routing = sparse_routing(sparse, experts)
        return replace(routing, native=self.from_tables(routing))

    def schedule(self, routing: Routing) -> Schedule:
        return ragged_schedule(self.native(routing)[0].expt_data, routing)
