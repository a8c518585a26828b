"""Generation v3.8 (content E): the size of microscaling blocks is said, kernel choices belong to the context."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import Weight
from gpucheck.library.adapters.v37 import MX_BLOCK, AdapterV37


class AdapterV38(AdapterV37):
    """See :class:`gpucheck.library.adapters.v37.AdapterV37`."""

    generation: ClassVar[str] = "v3.8"

    def require_readable(self, layout: Any, k: int) -> None:
        """Every layout is, for any K."""

    def current_constraints(self) -> dict[str, Any]:
        constraints: dict[str, Any] = self.opt_flags._get_opt_flags_constraints()
        return constraints

    def precision(self, weight: Weight, out_dtype: torch.dtype, x_scale: torch.Tensor | None) -> Any:
        precision = super().precision(weight, out_dtype, x_scale)
        if precision.b_mx_scale is not None:
            precision.b_microblock_size = MX_BLOCK
        return precision
