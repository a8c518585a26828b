"""Generation v3.8 (content E): the size of microscaling blocks is said, kernel choices belong to the context."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from gpucheck.library.adapters.base import KernelConfig, Weight
from gpucheck.library.adapters.matmul import MX_BLOCK, MatmulAdapter


class AdapterV38(MatmulAdapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`."""

    generation: ClassVar[str] = "v3.8"

    def current_constraints(self) -> dict[str, Any]:
        constraints: dict[str, Any] = self.opt_flags._get_opt_flags_constraints()
        return constraints

    def precision(
        self, weight: Weight, out_dtype: torch.dtype, x_scale: torch.Tensor | None, config: KernelConfig
    ) -> Any:
        precision = super().precision(weight, out_dtype, x_scale, config)
        if precision.b_mx_scale is not None:
            precision.b_microblock_size = MX_BLOCK
        return precision
