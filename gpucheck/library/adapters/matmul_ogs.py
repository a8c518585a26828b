"""What the generations with ``matmul_ogs`` (v3.4, v3.5, v3.6) do alike: objects for routing data and indices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import Routing
from gpucheck.library.adapters.matmul_adapter import MatmulAdapter, RowUse

PRODUCTS = ("_matmul_ogs", "_p_matmul_ogs")
"""Names of the product's kernels."""


class MatmulOgsAdapter(MatmulAdapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`."""

    product_name: ClassVar[str] = "matmul_ogs"
    weight_scale_field: ClassVar[str] = "weight_scale"

    @abstractmethod
    def expert_data(self, routing: Routing) -> Any:
        """The library's offsets and block map of the rows of each expert."""

    def wrapped(self, data: torch.Tensor, shape: list[int], dtype: Any = None, layout: Any = None) -> Any:
        return self.tensor.Tensor(self.tensor.Storage(data, layout), dtype=dtype or data.dtype, shape=shape)

    def swizzled(self, values: Any, scales: Any, **scale_options: Any) -> tuple[Any, Any]:
        axis = len(values.shape) - 2
        value_layout, options = self.layout.make_default_matmul_mxfp4_w_layout(mx_axis=axis)
        values = self.tensor.convert_layout(values, value_layout, **options)
        scale_layout, options = self.layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=axis, **scale_options)
        return values, self.tensor.convert_layout(scales, scale_layout, **options)

    def product(self, call: Callable[..., torch.Tensor], rows: RowUse) -> torch.Tensor:
        data, gather, scatter = (None, None, None) if rows.routing is None else self.native(rows.routing)
        return call(
            routing_data=data,
            gather_indx=gather if rows.gather else None,
            scatter_indx=scatter if rows.scatter else None,
            y=rows.into if rows.into is None or rows.into.ndim == 3 else rows.into[None],
        )

    def from_tables(self, routing: Routing) -> tuple[Any, Any, Any]:
        """Routing data, gather and scatter index objects."""
        module = self.matmul_module
        data = module.RoutingData(
            gate_scal=routing.gates,
            expt_hist=routing.histogram,
            n_expts_tot=routing.experts,
            n_expts_act=routing.per_token,
            expt_data=self.expert_data(routing),
        )
        gather = module.GatherIndx(src_indx=routing.to_flat, dst_indx=routing.to_sorted)
        scatter = module.ScatterIndx(src_indx=routing.to_sorted, dst_indx=routing.to_flat)
        return data, gather, scatter
