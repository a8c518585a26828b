"""What generations v3.7 and v3.8 share: ``matmul`` with plain index tensors, and the sum over a token's rows.

Layout ``"default"`` is the library's choice for mxfp4 on the current device, padded by the library; for other kinds
it equals ``"strided"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import Adapter, KernelConfig, Place, Rounding, Routing, Schedule, TopK, Weight
from gpucheck.library.adapters.common import (
    FLOAT8_KINDS,
    MX_KINDS,
    bit_matrix,
    device_capability,
    k_contiguous,
    kernel_choice,
    require,
    require_dense_rows,
    unit_stride,
)
from gpucheck.library.adapters.sparse import (
    by_expert_id,
    fused_swiglu,
    native_topk,
    ragged_schedule,
    sparse_routing,
    sparse_topk,
)

MX_AXIS = -2  # K counted from the end, as the layouts of these generations want it
MX_BLOCK = 32  # values that share a scale


@dataclass(frozen=True)
class Indices:
    """What a routed product of these generations takes; R = T*k rows."""

    metadata: Any  # the library's ragged metadata
    token: torch.Tensor  # (R,) int32: expert-sorted row -> token
    flat: torch.Tensor  # (R,) int32: expert-sorted row -> flat index, as the library numbers slots
    row: torch.Tensor  # (R,) int32: that flat index -> expert-sorted row, -1 where there is none


class MatmulAdapter(Adapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`."""

    mx_rounding: ClassVar[Rounding] = "even"
    kernels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "matmul": ("_matmul", "_p_matmul"),
        "topk": ("_topk_forward",),
        "route": ("_bitmatrix_metadata_compute_stage2",),
        "swiglu": ("_swiglu",),
        "downcast": ("_downcast_to_mxfp",),
        "upcast": ("_upcast_from_mxfp",),
        "reduce": ("_reduce_forward",),  # adds split-k parts and the k rows of a token
    }

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.dtype: Any = import_module("triton_kernels.tensor_details.dtype")
        self.layout: Any = import_module("triton_kernels.tensor_details.layout")
        self.matmul_module: Any = import_module("triton_kernels.matmul")
        self.mxfp: Any = import_module("triton_kernels.numerics_details.mxfp")
        self.numerics: Any = import_module("triton_kernels.numerics")
        self.opt_flags: Any = import_module("triton_kernels.matmul_details.opt_flags")
        self.reduce_module: Any = import_module("triton_kernels.reduce")
        self.specialize: Any = import_module("triton_kernels.specialize")
        self.swiglu_module: Any = import_module("triton_kernels.swiglu")
        self.tensor: Any = import_module("triton_kernels.tensor")
        self.topk_module: Any = import_module("triton_kernels.topk")

    def weight(self, kind: str, data: torch.Tensor, scale: torch.Tensor | None, layout: str, place: Place) -> Weight:
        if kind in MX_KINDS:
            if scale is None:
                raise ValueError(f"{kind} weights need block scales")
            return self._mx_weight(kind, data, scale, layout, place)
        if kind in FLOAT8_KINDS:
            flex_scale = None if scale is None else place(scale)
            return Weight(kind, place(k_contiguous(data)), lambda: None, flex_scale)
        return Weight(kind, place(unit_stride(data)), lambda: None, None)

    def _mx_weight(self, kind: str, data: torch.Tensor, scale: torch.Tensor, layout: str, place: Place) -> Weight:
        tensor, strided = self.tensor, self.layout.StridedLayout(MX_AXIS)
        dtype, shape = None, list(data.shape)
        if kind == "mxfp4":
            dtype, shape[MX_AXIS] = tensor.FP4, 2 * shape[MX_AXIS]
        values = tensor.wrap_torch_tensor(k_contiguous(data), dtype=dtype, shape=shape, layout=strided)
        scales = tensor.wrap_torch_tensor(k_contiguous(scale), layout=strided)
        if layout == "default" and kind == "mxfp4":
            values, scales = self._swizzled(values, scales)
        values.storage.data = place(values.storage.data)
        scale_data, scale_shape, scale_layout = place(scales.storage.data), scales.shape, scales.storage.layout

        def fresh_scale() -> Any:
            return tensor.wrap_torch_tensor(scale_data, shape=list(scale_shape), layout=scale_layout)

        return Weight(kind, values, fresh_scale, None)

    def _swizzled(self, values: Any, scales: Any) -> tuple[Any, Any]:
        """Both in the library's layouts for this device, which it pads itself."""

        def converted(tensor: Any, layout: Any) -> Any:
            return tensor if layout == tensor.storage.layout else self.tensor.convert_layout(tensor, layout)

        return (
            converted(values, self.layout.make_default_matmul_mxfp4_w_layout(mx_axis=MX_AXIS)),
            converted(scales, self.layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=MX_AXIS)),
        )

    def matmul(
        self,
        x: torch.Tensor,
        weight: Weight,
        *,
        out_dtype: torch.dtype | None,
        bias: torch.Tensor | None = None,
        routing: Routing | None = None,
        gather: bool = False,
        scatter: bool = False,
        gammas: torch.Tensor | None = None,
        swiglu: tuple[float, float] | None = None,
        x_scale: torch.Tensor | None = None,
        into: torch.Tensor | None = None,
        config: KernelConfig | None = None,
    ) -> torch.Tensor:
        config = config or KernelConfig()
        summed = scatter and routing is not None and (routing.per_token > 1 or routing.partial)
        self._require_supported(x, weight, config, routing is not None, gammas is not None, swiglu is not None)
        if bias is not None and bias.ndim == 1 and weight.operand.ndim == 3:
            bias = bias.expand(weight.operand.shape[0], -1)
        with kernel_choice(self.opt_flags, _constraints(config), self.current_constraints):
            rows: torch.Tensor = self.matmul_module.matmul(
                x,
                weight.operand,
                bias,
                **self._indices(routing, gather, scatter),
                precision_config=None if out_dtype is None else self.precision(weight, out_dtype, x_scale, config),
                gammas=gammas,
                c=None if summed else into,
                fused_activation=None if swiglu is None else self._fused_swiglu(*swiglu),
            )
            return self._summed(rows, routing, into) if summed and routing is not None else rows

    def _indices(self, routing: Routing | None, gather: bool, scatter: bool) -> dict[str, Any]:
        if routing is None:
            return {}
        indices = self.native(routing)
        return {
            "a_ragged_metadata": indices.metadata,
            "gather_indx": indices.token if gather else None,
            "scatter_indx": indices.flat if scatter else None,
        }

    def _summed(self, rows: torch.Tensor, routing: Routing, into: torch.Tensor | None) -> torch.Tensor:
        """Rows of a token leave the kernel one below the other, other ranks' unwritten; the caller adds them."""
        k = routing.per_token
        present = (self.native(routing).row != -1).view(-1, k, 1) if routing.partial else None
        each = rows.view(-1, k, rows.shape[-1])
        mask = None if present is None else present.expand_as(each)
        summed: torch.Tensor = self.reduce_module.reduce(each, dim=1, mask=mask, y=into)[0]
        return summed

    def from_tables(self, routing: Routing) -> Indices:
        flat = routing.to_flat
        metadata = self.tensor.make_ragged_tensor_metadata(routing.histogram, flat.numel())
        token = torch.div(flat, routing.per_token, rounding_mode="floor")
        return Indices(metadata, token, flat, routing.to_sorted)

    def _require_supported(
        self, x: torch.Tensor, weight: Weight, config: KernelConfig, routed: bool, gammas: bool, swiglu: bool
    ) -> None:
        require(
            not (gammas and swiglu),
            "whether gammas apply before or after a fused activation depends on the kernel the library chooses",
        )
        if routed and config.block_m is not None:
            sizes = self.tensor.RaggedTensorMetadata.block_sizes()
            require(config.block_m in sizes, f"routed tiles have one of {sizes} rows, not {config.block_m}")
        if weight.kind not in MX_KINDS:
            same_width = (weight.kind in FLOAT8_KINDS) == (x.element_size() == 1)
            require(same_width, f"Triton multiplies fp8 only by fp8: {x.dtype} activations with {weight.kind} weights")
            return
        if device_capability()[0] < 10:
            require(x.element_size() == 2, f"microscaled weights need 16-bit activations here, not {x.dtype}")
        if weight.operand.storage.layout.name == "HOPPER_VALUE":
            require(x.dtype == torch.bfloat16, f"Hopper's mxfp4 layout needs bf16 activations, not {x.dtype}")

    def current_constraints(self) -> dict[str, Any]:
        """The constraints on the library's kernel choice in force."""
        constraints: dict[str, Any] = self.opt_flags._opt_flags_constraints
        return constraints

    def precision(
        self, weight: Weight, out_dtype: torch.dtype, x_scale: torch.Tensor | None, config: KernelConfig
    ) -> Any:
        """A fresh precision config: the call changes it and the wrappers in it."""
        flex = self.numerics.InFlexData
        return self.matmul_module.PrecisionConfig(
            max_num_imprecise_acc=config.imprecise_accumulations,
            allow_tf32=config.allow_tf32,
            flex_ctx=self.matmul_module.FlexCtx(flex(scale=x_scale), flex(scale=weight.flex_scale)),
            b_mx_scale=weight.fresh_scale(),
            out_dtype=out_dtype,
            enforce_bitwise_invariance=config.bitwise_invariant,
        )

    def _fused_swiglu(self, alpha: float, limit: float) -> Any:
        return fused_swiglu(self.matmul_module, self.specialize, self.swiglu_module.swiglu_fn, alpha, limit)

    def topk(self, logits: torch.Tensor, k: int, *, over_all: bool = False) -> TopK:
        return sparse_topk(self.topk_module.topk, logits, k, over_all)

    def route(self, logits: torch.Tensor, k: int, *, over_all: bool = False) -> Routing:
        sparse = native_topk(self.topk_module.topk, logits, k, over_all)
        return by_expert_id(self._routing(sparse, logits.shape[1]), sparse.indx)

    def routed(self, ids: torch.Tensor, gates: torch.Tensor, experts: int, partial: bool = False) -> Routing:
        bits = self.tensor.wrap_torch_tensor(bit_matrix(ids, experts), dtype=self.dtype.BIT, shape=[len(ids), experts])
        sparse = self.tensor.SparseMatrix(indx=ids.to(torch.int16), vals=gates, mask=bits)
        return replace(self._routing(sparse, experts), partial=partial)

    def _routing(self, sparse: Any, experts: int) -> Routing:
        routing = sparse_routing(sparse, experts)
        return replace(routing, native=self.from_tables(routing))

    def schedule(self, routing: Routing) -> Schedule:
        return ragged_schedule(self.native(routing).metadata, routing)

    def swiglu(self, x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
        module = self.swiglu_module
        require_dense_rows(x)
        output: torch.Tensor = module.swiglu(x, alpha, module.PrecisionConfig(limit=limit))
        return output

    def downcast(self, x: torch.Tensor, kind: str, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        length = x.shape[axis]
        require(length % MX_BLOCK == 0, f"the library quantises along multiples of {MX_BLOCK}, not {length}")
        values, scales = self.mxfp.downcast_to_mxfp(x, MX_KINDS[kind], axis)
        return values, scales

    def upcast(self, values: torch.Tensor, scales: torch.Tensor, out_dtype: torch.dtype, axis: int) -> torch.Tensor:
        output: torch.Tensor = self.mxfp.upcast_from_mxfp(values, scales, out_dtype, axis)
        return output


def _constraints(config: KernelConfig) -> dict[str, Any]:
    """The library's names and values of what ``config`` asks for."""
    asked = {
        "is_persistent": config.persistent,
        "split_k": config.split_k,
        "block_m": config.block_m,
        "epilogue_subtile": config.epilogue_subtile,
        "num_stages": config.num_stages,
    }
    return {name: value for name, value in asked.items() if value is not None}
