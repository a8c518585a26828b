"""Generation v3.5 (content B): ``matmul_ogs`` with the ``routing`` module."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.weak import WeakIdKeyDictionary

from gpucheck.library.adapters.base import KernelConfig, Rounding, Routing, TopK
from gpucheck.library.adapters.common import ascending_experts, require, require_power_of_two
from gpucheck.library.adapters.matmul_ogs import MatmulOgsAdapter


class AdapterV35(MatmulOgsAdapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`.

    Batched products are always asked for without split-k: this generation's scratch memory for split-k holds one
    batch entry only, so its own choice of split-k would write past the end.
    """

    generation: ClassVar[str] = "v3.5"
    mx_rounding: ClassVar[Rounding] = "half-away"
    kernels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "matmul": ("_matmul_ogs", "_p_matmul_ogs"),
        "topk": ("_topk_forward",),
        "route": ("_combined_routing_compute",),
        "swiglu": ("_swiglu",),
        "downcast": ("_downcast_to_mxfp",),
        "upcast": ("_upcast_from_mxfp",),
    }

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.routing_module: Any = import_module("triton_kernels.routing")
        self.topk_module: Any = import_module("triton_kernels.topk")
        self._tiles: MutableMapping[Routing, Any] = WeakIdKeyDictionary()

    def routing_arguments(self, routing: Routing) -> tuple[Any, Any, Any]:
        module = self.routing_module
        if routing not in self._tiles:  # once a routing: it makes the host wait for the device
            self._tiles[routing] = module.compute_expt_data_torch(
                routing.histogram, routing.experts, routing.to_flat.numel()
            )
        tiles = self._tiles[routing]
        data = module.RoutingData(routing.gates, routing.histogram, routing.experts, routing.per_token, tiles)
        gather = module.GatherIndx(src_indx=routing.to_flat, dst_indx=routing.to_sorted)
        scatter = module.ScatterIndx(src_indx=routing.to_sorted, dst_indx=routing.to_flat)
        return data, gather, scatter

    def fused_swiglu(self, alpha: float, limit: float) -> Any:
        specs = self.matmul_module.FnSpecs("swiglu", self.swiglu_module.swiglu_fn, ("alpha", "limit"))
        return self.matmul_module.FusedActivation(specs, (alpha, limit), 2)

    def constraints(self, config: KernelConfig, x: torch.Tensor) -> dict[str, Any]:
        asked = super().constraints(config, x)
        if x.ndim == 3:
            require(asked.get("split_k", 1) == 1, f"{self.generation} cannot split K of batched products")
            asked["split_k"] = 1
        return asked

    def topk(self, logits: torch.Tensor, k: int) -> TopK:
        require_power_of_two(k)
        values, experts, _ = self.topk_module.topk(logits, k)
        return ascending_experts(values, experts)

    def route(self, logits: torch.Tensor, k: int) -> Routing:
        require_power_of_two(k)
        data, gather, _ = self.routing_module.routing(logits, k)
        return Routing(
            histogram=data.expt_hist,
            to_flat=gather.src_indx,
            to_sorted=gather.dst_indx,
            gates=data.gate_scal.float(),
            experts=logits.shape[1],
            per_token=k,
        )
