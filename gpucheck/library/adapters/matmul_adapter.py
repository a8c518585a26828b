"""What all generations share: weights, products, swiglu and codecs; hooks say what each generation does its own way.

Layout ``"default"`` is the library's choice for mxfp4 on the current device: Hopper's swizzled values and scales on
capability 9, Blackwell's on 10, strided before; for other kinds it equals ``"strided"``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import LAUNCH_PARAMETERS, Adapter, KernelConfig, Place, Routing, Weight
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

SHARED_KERNELS = {
    "topk": ("_topk_forward",),
    "swiglu": ("_swiglu",),
    "downcast": ("_downcast_to_mxfp",),
    "upcast": ("_upcast_from_mxfp",),
}
"""The part of ``Adapter.kernels`` that is the same in all generations."""


@dataclass(frozen=True)
class RowUse:
    """What a product is told of rows and of the memory of its result; for each see :meth:`Adapter.matmul`."""

    routing: Routing | None
    gather: bool
    scatter: bool
    into: torch.Tensor | None


class MatmulAdapter(Adapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`."""

    product_name: ClassVar[str] = "matmul"
    """What the library calls the function of its product, and the module that has it."""
    weight_scale_field: ClassVar[str] = "b_mx_scale"
    """Field of the precision config that takes the block scales of the weight."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.layout: Any = import_module("triton_kernels.tensor_details.layout")
        self.matmul_module: Any = import_module(f"triton_kernels.{self.product_name}")
        self.mxfp: Any = import_module("triton_kernels.numerics_details.mxfp")
        self.numerics: Any = import_module("triton_kernels.numerics")
        self.opt_flags: Any = import_module(f"triton_kernels.{self.product_name}_details.opt_flags")
        self.swiglu_module: Any = import_module("triton_kernels.swiglu")
        self.tensor: Any = import_module("triton_kernels.tensor")
        self.topk_module: Any = import_module("triton_kernels.topk")

    @abstractmethod
    def wrapped(self, data: torch.Tensor, shape: list[int], dtype: Any = None, layout: Any = None) -> Any:
        """The library's tensor of ``data``.

        Args:
            shape: number of values along each dimension; 4-bit values have twice the rows of their bytes.
            dtype: the library's name of it; None: that of ``data``.
            layout: None: strided, contiguous along K.
        """

    @abstractmethod
    def swizzled(self, values: Any, scales: Any) -> tuple[Any, Any]:
        """mxfp4 values and their scales in the library's layouts for this device."""

    @abstractmethod
    def product(self, call: Callable[..., torch.Tensor], rows: RowUse) -> torch.Tensor:
        """The result of ``call``, the library's product, with what it is told of rows and of the result's memory.

        Where the library leaves the rows of a token one below the other, this sums them.
        """

    @abstractmethod
    def block_rows(self) -> Sequence[int]:
        """Rows of a tile that routing metadata is made for."""

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

    def read_back(self, tensor: Any) -> torch.Tensor:
        data: torch.Tensor = tensor.storage.layout.unswizzle_data(tensor.storage.data.cpu())
        return data

    def _mx_weight(self, kind: str, data: torch.Tensor, scale: torch.Tensor, layout: str, place: Place) -> Weight:
        dtype, shape = None, list(data.shape)
        if kind == "mxfp4":
            dtype, shape[-2] = self.tensor.FP4, 2 * shape[-2]
        values = self.wrapped(k_contiguous(data), shape, dtype)
        scales = self.wrapped(k_contiguous(scale), list(scale.shape))
        if layout == "default" and kind == "mxfp4":
            values, scales = self.swizzled(values, scales)
        values.storage.data = place(values.storage.data)
        scale_data, scale_shape, scale_layout = place(scales.storage.data), scales.shape, scales.storage.layout

        def fresh_scale() -> Any:
            return self.wrapped(scale_data, list(scale_shape), layout=scale_layout)

        return Weight(kind, values, fresh_scale, None)

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
        self._require_supported(x, weight, config, routing is not None, gammas is not None, swiglu is not None)
        if bias is not None and bias.ndim == 1 and weight.operand.ndim == 3:
            bias = bias.expand(weight.operand.shape[0], -1)
        with kernel_choice(self.opt_flags, self.constraints(config, x), self.current_constraints):
            call = partial(
                getattr(self.matmul_module, self.product_name),
                x,
                weight.operand,
                bias,
                precision_config=None if out_dtype is None else self.precision(weight, out_dtype, x_scale),
                gammas=gammas,
                fused_activation=None if swiglu is None else self.fused_swiglu(*swiglu),
            )
            return self.product(call, RowUse(routing, gather, scatter, into))

    def _require_supported(
        self, x: torch.Tensor, weight: Weight, config: KernelConfig, routed: bool, gammas: bool, swiglu: bool
    ) -> None:
        require(
            config.split_k == 1 or not (gammas and swiglu),
            "gammas apply after a fused activation where sums are not split, and before it where they are",
        )
        if routed and config.block_m is not None:
            sizes = self.block_rows()
            require(config.block_m in sizes, f"routed tiles have one of {sizes} rows, not {config.block_m}")
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

    def constraints(self, config: KernelConfig, x: torch.Tensor) -> dict[str, Any]:
        """The library's names and values of what ``config`` asks for."""
        asked = {"is_persistent": config.persistent} | {name: getattr(config, name) for name in LAUNCH_PARAMETERS}
        return {name: value for name, value in asked.items() if value is not None}

    def current_constraints(self) -> dict[str, Any]:
        """The constraints on the library's kernel choice in force."""
        constraints: dict[str, Any] = self.opt_flags._opt_flags_constraints
        return constraints

    def precision(self, weight: Weight, out_dtype: torch.dtype, x_scale: torch.Tensor | None) -> Any:
        """A fresh precision config: the call changes it and the wrappers in it."""
        flex = self.numerics.InFlexData
        return self.matmul_module.PrecisionConfig(
            allow_tf32=False,
            flex_ctx=self.matmul_module.FlexCtx(flex(scale=x_scale), flex(scale=weight.flex_scale)),
            out_dtype=out_dtype,
            **{self.weight_scale_field: weight.fresh_scale()},
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
