"""Generation v3.7 (content D): the first with ``matmul``, which takes plain index tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import Rounding, Routing
from gpucheck.library.adapters.common import require
from gpucheck.library.adapters.matmul_adapter import SHARED_KERNELS, RowUse
from gpucheck.library.adapters.sparse import ROUTING_KERNELS, SparseRoutingAdapter

MX_AXIS = -2  # K counted from the end, as the layouts of this generation want it
MX_BLOCK = 32  # values that share a scale


@dataclass(frozen=True)
class Indices:
    """What a routed product takes; R = T*k rows."""

    metadata: Any  # the library's ragged metadata
    token: torch.Tensor  # (R,) int32: expert-sorted row -> token
    flat: torch.Tensor  # (R,) int32: expert-sorted row -> flat index, as the library numbers slots
    row: torch.Tensor  # (R,) int32: that flat index -> expert-sorted row, -1 where there is none


class AdapterV37(SparseRoutingAdapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`; the library pads its layouts itself."""

    generation: ClassVar[str] = "v3.7"
    mx_rounding: ClassVar[Rounding] = "even"
    kernels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **SHARED_KERNELS,
        "matmul": ("_matmul", "_p_matmul"),
        "route": ROUTING_KERNELS,
        "reduce": ("_reduce_forward",),  # adds split-k parts and the k rows of a token
    }

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.dtype: Any = import_module("triton_kernels.tensor_details.dtype")
        self.reduce_module: Any = import_module("triton_kernels.reduce")

    def wrapped(self, data: torch.Tensor, shape: list[int], dtype: Any = None, layout: Any = None) -> Any:
        layout = layout or self.layout.StridedLayout(MX_AXIS)
        return self.tensor.wrap_torch_tensor(data, dtype=dtype, shape=shape, layout=layout)

    def read_back(self, tensor: Any) -> torch.Tensor:
        order = tensor.storage.layout.make_transformation(list(tensor.shape), tensor.dtype == self.dtype.FP4)
        data: torch.Tensor = order.unswizzle_data(tensor.storage.data.cpu())
        if tensor.dtype != self.dtype.FP4:
            return data
        codes = torch.stack([data & 15, data >> 4], -1).flatten(-2)  # the inverse has two columns in a byte
        return codes[..., 0::2, :] | codes[..., 1::2, :] << 4

    def swizzled(self, values: Any, scales: Any) -> tuple[Any, Any]:
        def converted(tensor: Any, layout: Any) -> Any:
            return tensor if layout == tensor.storage.layout else self.tensor.convert_layout(tensor, layout)

        layout = self.layout.make_default_matmul_mxfp4_w_layout(mx_axis=MX_AXIS)
        self.require_readable(layout, values.shape[-2])
        scale_layout = self.layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=MX_AXIS)
        return converted(values, layout), converted(scales, scale_layout)

    def require_readable(self, layout: Any, k: int) -> None:
        """Raises Inapplicable where the kernel does not read K values in this layout as they were written."""
        # The layout interleaves 64 rows of K; the kernel cuts the last, incomplete 64.
        whole = layout.name != "HOPPER_VALUE" or k % 64 == 0
        generation = f"this copy of {self.generation}"
        require(whole, f"{generation} reads Hopper's mxfp4 layout rightly only where K is a multiple of 64, not {k}")

    def product(self, call: Callable[..., torch.Tensor], rows: RowUse) -> torch.Tensor:
        routing = rows.routing
        if routing is None:
            return call(c=rows.into)
        indices: Indices = self.native(routing)
        summed = rows.scatter and (routing.per_token > 1 or routing.partial)
        result = call(
            a_ragged_metadata=indices.metadata,
            gather_indx=indices.token if rows.gather else None,
            scatter_indx=indices.flat if rows.scatter else None,
            c=None if summed else rows.into,
        )
        return self._summed(result, routing, indices, rows.into) if summed else result

    def _summed(
        self, rows: torch.Tensor, routing: Routing, indices: Indices, into: torch.Tensor | None
    ) -> torch.Tensor:
        """Rows of a token leave the kernel one below the other, other ranks' unwritten; the caller adds them."""
        each = rows.view(-1, routing.per_token, rows.shape[-1])
        present = (indices.row != -1).view(-1, routing.per_token, 1).expand_as(each) if routing.partial else None
        summed: torch.Tensor = self.reduce_module.reduce(each, dim=1, mask=present, y=into)[0]
        return summed

    def from_tables(self, routing: Routing) -> Indices:
        flat = routing.to_flat
        metadata = self.tensor.make_ragged_tensor_metadata(routing.histogram, flat.numel())
        token = torch.div(flat, routing.per_token, rounding_mode="floor")
        return Indices(metadata, token, flat, routing.to_sorted)

    def bits(self, words: torch.Tensor, experts: int) -> Any:
        return self.tensor.wrap_torch_tensor(words, dtype=self.dtype.BIT, shape=[len(words), experts])

    def ragged_metadata(self, routing: Routing) -> Any:
        return self.native(routing).metadata

    def downcast(self, x: torch.Tensor, kind: str, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        length = x.shape[axis]
        require(length % MX_BLOCK == 0, f"the library quantises along multiples of {MX_BLOCK}, not {length}")
        return super().downcast(x, kind, axis)
