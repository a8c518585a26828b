"""Generation v3.6 (content C): ``matmul_ogs`` with ragged metadata and without a routing module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import Rounding, Routing
from gpucheck.library.adapters.matmul_adapter import SHARED_KERNELS
from gpucheck.library.adapters.matmul_ogs import PRODUCTS, MatmulOgsAdapter
from gpucheck.library.adapters.sparse import ROUTING_KERNELS, SparseRoutingAdapter


class AdapterV36(MatmulOgsAdapter, SparseRoutingAdapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`; the library pads its layouts itself, for any K and N."""

    generation: ClassVar[str] = "v3.6"
    mx_rounding: ClassVar[Rounding] = "even"
    kernels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **SHARED_KERNELS,
        "matmul": PRODUCTS,
        "route": ROUTING_KERNELS,
        "reduce": ("_reduce",),  # adds split-k parts and the k rows of a token
    }

    def expert_data(self, routing: Routing) -> Any:
        return self.tensor.make_ragged_tensor_metadata(routing.histogram, routing.to_flat.numel())

    def bits(self, words: torch.Tensor, experts: int) -> Any:
        return self.tensor.Bitmatrix(words, dtype=self.tensor.BIT, shape=[len(words), experts])

    def ragged_metadata(self, routing: Routing) -> Any:
        return self.native(routing)[0].expt_data
