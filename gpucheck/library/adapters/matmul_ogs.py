"""What the generations with ``matmul_ogs`` (v3.4, v3.5, v3.6) share.

Layout ``"default"`` is the library's choice for mxfp4 on the current device: Hopper's swizzled values and scales on
capability 9, Blackwell's on 10, strided before; for other kinds it equals ``"strided"``. Hopper's layouts need K and
N to be multiples of 64 here: nothing is padded, other shapes are inapplicable.
"""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gpucheck.library.adapters.base import Adapter, KernelConfig, Place, Routing, Weight
from gpucheck.library.adapters.common import (
    FLOAT8_KINDS,
    MX_KINDS,
    device_capability,
    k_contiguous,
    kernel_choice,
    require,
    require_dense_rows,
    unit_stride,
)

BLOCK_ROWS = (16, 32, 64, 128)  # tile heights that routing metadata is made for


class MatmulOgsAdapter(Adapter):
    """Weights, matmul, swiglu and codecs of the ``matmul_ogs`` generations; routing differs and is left open."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.matmul_module: Any = import_module("triton_kernels.matmul_ogs")
        self.opt_flags = import_module("triton_kernels.matmul_ogs_details.opt_flags")
        self.tensor: Any = import_module("triton_kernels.tensor")
        self.layout: Any = import_module("triton_kernels.tensor_details.layout")
        self.numerics: Any = import_module("triton_kernels.numerics")
        self.mxfp: Any = import_module("triton_kernels.numerics_details.mxfp")
        self.swiglu_module: Any = import_module("triton_kernels.swiglu")

    @abstractmethod
    def fused_swiglu(self, alpha: float, limit: float) -> Any:
        """The library's fused activation."""

    def weight(self, kind: str, data: torch.Tensor, scale: torch.Tensor | None, layout: str, place: Place) -> Weight:
        if kind in MX_KINDS:
            assert scale is not None, f"{kind} needs block scales"
            return self._mx_weight(kind, data, scale, layout, place)
        if kind in FLOAT8_KINDS:
            flex_scale = None if scale is None else place(scale)
            return Weight(kind, place(k_contiguous(data)), lambda: None, flex_scale)
        return Weight(kind, place(unit_stride(data)), lambda: None, None)

    def _mx_weight(self, kind: str, data: torch.Tensor, scale: torch.Tensor, layout: str, place: Place) -> Weight:
        values = self._wrap(k_contiguous(data), self.tensor.FP4 if kind == "mxfp4" else None)
        scales = self._wrap(k_contiguous(scale), None)
        if layout == "default" and kind == "mxfp4":
            values, scales = self._swizzled(values, scales)
        values.storage.data = place(values.storage.data)
        scale_data, scale_layout = place(scales.storage.data), scales.storage.layout
        shape, shape_max = list(scales.shape), list(scales.shape_max)

        def fresh_scale() -> Any:
            storage = self.tensor.Storage(scale_data, scale_layout)
            return self.tensor.Tensor(storage, dtype=torch.uint8, shape=list(shape), shape_max=list(shape_max))

        return Weight(kind, values, fresh_scale, None)

    def _wrap(self, data: torch.Tensor, dtype: Any) -> Any:
        """The library's tensor of K-contiguous ``data``; 4-bit values have twice the rows of their bytes."""
        shape = list(data.shape)
        if dtype is None:
            return self.tensor.Tensor(self.tensor.Storage(data), dtype=data.dtype, shape=shape)
        shape[-2] *= 2
        return self.tensor.Tensor(self.tensor.Storage(data), dtype=dtype, shape=shape)

    def _swizzled(self, values: Any, scales: Any) -> tuple[Any, Any]:
        k, n = values.shape[-2:]
        major = device_capability()[0]
        if major == 9:
            whole_tiles = k % 64 == 0 and n % 64 == 0
            require(whole_tiles, f"Hopper's mxfp4 layout needs K and N multiples of 64, not {k} and {n}")
        axis = len(values.shape) - 2
        # A tile of 8 warps is 256 columns wide; the kernel's tile of a narrow output is at most 128.
        warps = 4 if n <= 128 else 8
        layouts = self.layout
        value_layout, value_options = layouts.make_default_matmul_mxfp4_w_layout(mx_axis=axis)
        scale_layout, scale_options = layouts.make_default_matmul_mxfp4_w_scale_layout(mx_axis=axis, num_warps=warps)
        return (
            self.tensor.convert_layout(values, value_layout, **value_options),
            self.tensor.convert_layout(scales, scale_layout, **scale_options),
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
        if into is not None:
            self.require_room(scatter and routing is not None and routing.per_token > 1)
        self._require_supported(x, weight, config, routing is not None, gammas is not None, swiglu is not None)
        routing_data = gather_index = scatter_index = None
        if routing is not None:
            routing_data, gather_index, scatter_index = self.native(routing)
        if bias is not None and bias.ndim == 1 and weight.operand.ndim == 3:
            bias = bias.expand(weight.operand.shape[0], -1)
        with kernel_choice(self.opt_flags, self.constraints(config, x), lambda: self.opt_flags._opt_flags_constraints):
            output: torch.Tensor = self.matmul_module.matmul_ogs(
                x,
                weight.operand,
                bias,
                routing_data=routing_data,
                gather_indx=gather_index if gather else None,
                scatter_indx=scatter_index if scatter else None,
                precision_config=None if out_dtype is None else self.precision(weight, out_dtype, x_scale, config),
                gammas=gammas,
                y=into if into is None or into.ndim == 3 else into[None],
                fused_activation=None if swiglu is None else self.fused_swiglu(*swiglu),
            )
        return output

    def require_room(self, summed: bool) -> None:
        """Raises Inapplicable where the caller cannot give the memory of a result of ``summed`` rows, or others."""

    def _require_supported(
        self, x: torch.Tensor, weight: Weight, config: KernelConfig, routed: bool, gammas: bool, swiglu: bool
    ) -> None:
        require(
            not (gammas and swiglu),
            "whether gammas apply before or after a fused activation depends on the kernel the library chooses",
        )
        if routed and config.block_m is not None:
            require(config.block_m in BLOCK_ROWS, f"routed tiles have one of {BLOCK_ROWS} rows, not {config.block_m}")
        if weight.kind not in MX_KINDS:
            same_width = (weight.kind in FLOAT8_KINDS) == (x.element_size() == 1)
            require(same_width, f"Triton multiplies fp8 only by fp8: {x.dtype} activations with {weight.kind} weights")
            if torch.cuda.is_available() and weight.kind == "fp8_e4m3":
                require(device_capability() >= (8, 9), "Triton compiles e4m3 from capability 8.9 on")
            return
        supported = x.element_size() == 2 or (x.element_size() == 1 and device_capability()[0] >= 10)
        require(supported, f"microscaled weights need 16-bit activations (fp8 from capability 10 on), not {x.dtype}")
        if weight.operand.storage.layout.name == "HOPPER_VALUE":
            require(x.dtype == torch.bfloat16, f"Hopper's mxfp4 layout needs bf16 activations, not {x.dtype}")
            require(
                config.imprecise_accumulations is None,
                "a limit on fp8 accumulation narrows the tile below what Hopper's mxfp4 scale layout needs",
            )

    def constraints(self, config: KernelConfig, x: torch.Tensor) -> dict[str, Any]:
        """The library's names and values of what ``config`` asks for."""
        asked = {
            "is_persistent": config.persistent,
            "split_k": config.split_k,
            "block_m": config.block_m,
            "epilogue_subtile": config.epilogue_subtile,
            "num_stages": config.num_stages,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def precision(
        self, weight: Weight, out_dtype: torch.dtype, x_scale: torch.Tensor | None, config: KernelConfig
    ) -> Any:
        """A fresh precision config: the call changes it and the wrappers in it."""
        flex = self.numerics.InFlexData
        context = self.matmul_module.FlexCtx(lhs_data=flex(scale=x_scale), rhs_data=flex(scale=weight.flex_scale))
        return self.matmul_module.PrecisionConfig(
            max_num_imprecise_acc=config.imprecise_accumulations,
            allow_tf32=config.allow_tf32,
            flex_ctx=context,
            weight_scale=weight.fresh_scale(),
            out_dtype=out_dtype,
            enforce_bitwise_invariance=config.bitwise_invariant,
        )

    def swiglu(self, x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
        module = self.swiglu_module
        require_dense_rows(x)
        output: torch.Tensor = module.swiglu(x, alpha, module.PrecisionConfig(limit=limit))
        return output

    def downcast(self, x: torch.Tensor, kind: str, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, scales = self.mxfp.downcast_to_mxfp(x, MX_KINDS[kind], axis)
        return values, scales

    def upcast(self, values: torch.Tensor, scales: torch.Tensor, out_dtype: torch.dtype, axis: int) -> torch.Tensor:
        output: torch.Tensor = self.mxfp.upcast_from_mxfp(values, scales, out_dtype, axis)
        return output
