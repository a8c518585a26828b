"""Generation v3.8 (contents E and F): microscaling blocks say their size, kernel choices belong to the context."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import Weight
from gpucheck.library.adapters.v37 import MX_BLOCK, AdapterV37


class AdapterV38(AdapterV37):
    """See :class:`gpucheck.library.adapters.v37.AdapterV37`."""

    generation: ClassVar[str] = "v3.8"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        kernel = root / "triton_kernels/matmul_details/_matmul.py"
        # Since May 2026 (triton pull request 10385) the kernel counts the rows that pad K to whole 64s; F is older.
        self.pads_k = re.search(r"\bcdiv\(K, 64\)", kernel.read_text(encoding="utf-8")) is not None

    def require_readable(self, layout: Any, k: int) -> None:
        """Every layout is, for any K, where the kernel counts the rows that pad K."""
        if not self.pads_k:
            super().require_readable(layout, k)

    def current_constraints(self) -> dict[str, Any]:
        constraints: dict[str, Any] = self.opt_flags._get_opt_flags_constraints()
        return constraints

    def precision(self, weight: Weight, out_dtype: torch.dtype, x_scale: torch.Tensor | None) -> Any:
        precision = super().precision(weight, out_dtype, x_scale)
        if precision.b_mx_scale is not None:
            precision.b_microblock_size = MX_BLOCK
        return precision
