"""Generation v3.4 (content A): as v3.5, with fewer types of the codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import Routing
from gpucheck.library.adapters.common import require
from gpucheck.library.adapters.matmul_adapter import RowUse
from gpucheck.library.adapters.v35 import AdapterV35


class AdapterV34(AdapterV35):
    """See :class:`gpucheck.library.adapters.v35.AdapterV35`."""

    generation: ClassVar[str] = "v3.4"
    kernels: ClassVar[Mapping[str, tuple[str, ...]]] = {**AdapterV35.kernels, "reduce": ("_finalize_matmul",)}

    def product(self, call: Callable[..., torch.Tensor], rows: RowUse) -> torch.Tensor:
        summed = rows.scatter and rows.routing is not None and rows.routing.per_token > 1
        reason = "v3.4 may need room for more rows than the result has, where it sums those of a token"
        require(rows.into is None or not summed, reason)
        return super().product(call, rows)

    def from_tables(self, routing: Routing) -> tuple[Any, Any, Any]:
        k = routing.per_token
        require(k & (k - 1) == 0, f"v3.4 scatters rows of a token only where k is a power of two, not {k}")
        return super().from_tables(routing)

    def downcast(self, x: torch.Tensor, kind: str, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        require(x.dtype in (torch.bfloat16, torch.float16), f"v3.4 quantises bf16 and fp16, not {x.dtype}")
        return super().downcast(x, kind, axis)

    def upcast(self, values: torch.Tensor, scales: torch.Tensor, out_dtype: torch.dtype, axis: int) -> torch.Tensor:
        require(out_dtype in (torch.bfloat16, torch.float16), f"v3.4 dequantises to bf16 and fp16, not {out_dtype}")
        return super().upcast(values, scales, out_dtype, axis)
