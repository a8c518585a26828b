"""Generation v3.4 (content A): as v3.5, with fewer targets of the codec."""

from __future__ import annotations

from typing import ClassVar

import torch

from gpucheck.library.adapters.common import require
from gpucheck.library.adapters.v35 import AdapterV35


class AdapterV34(AdapterV35):
    """See :class:`gpucheck.library.adapters.v35.AdapterV35`."""

    generation: ClassVar[str] = "v3.4"

    def upcast(self, values: torch.Tensor, scales: torch.Tensor, out_dtype: torch.dtype, axis: int) -> torch.Tensor:
        require(out_dtype in (torch.bfloat16, torch.float16), f"v3.4 dequantises to bf16 and fp16, not {out_dtype}")
        return super().upcast(values, scales, out_dtype, axis)
