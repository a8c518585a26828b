"""Generation v3.5 (content B): ``matmul_ogs`` with the ``routing`` module."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import KernelConfig, Rounding, Routing, Schedule, TopK
from gpucheck.library.adapters.common import (
    ascending_experts,
    bit_matrix,
    device_capability,
    require,
    require_power_of_two,
)
from gpucheck.library.adapters.matmul_adapter import SHARED_KERNELS
from gpucheck.library.adapters.matmul_ogs import PRODUCTS, MatmulOgsAdapter


class AdapterV35(MatmulOgsAdapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`.

    Batched products are always asked for without split-k: this generation's scratch memory for split-k holds one
    batch entry only, so its own choice of split-k would write past the end. Hopper's mxfp4 layouts need K and N to be
    multiples of 64: nothing is padded, other shapes are inapplicable.
    """

    generation: ClassVar[str] = "v3.5"
    mx_rounding: ClassVar[Rounding] = "half-away"
    kernels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **SHARED_KERNELS,
        "matmul": PRODUCTS,
        "route": ("_combined_routing_compute",),
        "reduce": ("_reduce_grouped",),  # adds split-k parts and the k rows of a token
    }

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.routing_module: Any = import_module("triton_kernels.routing")

    def expert_data(self, routing: Routing) -> Any:
        return self.routing_module.compute_expt_data(routing.histogram, routing.experts, routing.to_flat.numel())

    def block_rows(self) -> tuple[int, ...]:
        return 16, 32, 64, 128

    def swizzled(self, values: Any, scales: Any, **scale_options: Any) -> tuple[Any, Any]:
        k, n = values.shape[-2:]
        whole_tiles = device_capability()[0] != 9 or (k % 64 == 0 and n % 64 == 0)
        require(whole_tiles, f"Hopper's mxfp4 layout needs K and N multiples of 64, not {k} and {n}")
        # A tile of 8 warps is 256 columns wide; the kernel's tile of a narrow output is at most 128.
        return super().swizzled(values, scales, num_warps=4 if n <= 128 else 8, **scale_options)

    def fused_swiglu(self, alpha: float, limit: float) -> Any:
        specs = self.matmul_module.FnSpecs("swiglu", self.swiglu_module.swiglu_fn, ("alpha", "limit"))
        return self.matmul_module.FusedActivation(specs, (alpha, limit), 2)

    def constraints(self, config: KernelConfig, x: torch.Tensor) -> dict[str, Any]:
        asked = super().constraints(config, x)
        if x.ndim == 3:
            require(asked.get("split_k", 1) == 1, f"{self.generation} cannot split K of batched products")
            asked["split_k"] = 1
        return asked

    def topk(self, logits: torch.Tensor, k: int, *, over_all: bool = False) -> TopK:
        require_power_of_two(k)
        given = torch.softmax(logits, dim=-1) if over_all else logits
        values, experts, _ = self.topk_module.topk(given, k, apply_softmax=not over_all)
        return ascending_experts(values, experts)

    def route(self, logits: torch.Tensor, k: int, *, over_all: bool = False) -> Routing:
        require_power_of_two(k)
        return self._routing(self.routing_module.routing(logits, k, sm_first=over_all), k)

    def routed(self, ids: torch.Tensor, gates: torch.Tensor, experts: int, partial: bool = False) -> Routing:
        tokens, k = ids.shape
        require_power_of_two(k)
        bits = bit_matrix(ids, experts)
        used = self.tensor.Bitmatrix(bits, shape=[tokens, 32 * bits.shape[1]], shape_max=[tokens, None])
        made = self.routing_module.routing_from_bitmatrix(used, gates, ids.to(torch.int16), experts, k)
        return self._routing(made, k, partial)

    def _routing(self, native: tuple[Any, Any, Any], k: int, partial: bool = False) -> Routing:
        data, gather, _ = native
        tables = data.expt_hist, gather.src_indx, gather.dst_indx, data.gate_scal
        return Routing(*tables, experts=data.n_expts_tot, per_token=k, partial=partial, native=native)

    def schedule(self, routing: Routing) -> Schedule:
        data, _, scatter = self.native(routing)
        blocks = data.expt_data
        sizes = tuple(sorted(blocks.block_pid_map))
        return Schedule(
            rows=blocks.hist,
            row_offsets=blocks.token_offs_raw,
            block_sizes=sizes,
            block_offsets=torch.stack([blocks.token_offs_pad[size] for size in sizes]),
            block_map=torch.stack([blocks.block_pid_map[size] for size in sizes]),
            scatter_to_flat=scatter.dst_indx,
            scatter_to_sorted=scatter.src_indx,
        )
