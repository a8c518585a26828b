"""Generation v3.7 (content D): the first with ``matmul``."""

from __future__ import annotations

from typing import Any, ClassVar

from gpucheck.library.adapters.common import require
from gpucheck.library.adapters.matmul import MatmulAdapter


class AdapterV37(MatmulAdapter):
    """See :class:`gpucheck.library.adapters.base.Adapter`."""

    generation: ClassVar[str] = "v3.7"

    def _swizzled(self, values: Any, scales: Any) -> tuple[Any, Any]:
        """Hopper's value layout interleaves 64 rows of K; this generation's kernel cuts the last, incomplete 64."""
        values, scales = super()._swizzled(values, scales)
        if values.storage.layout.name == "HOPPER_VALUE":
            k = values.shape[-2]
            require(k % 64 == 0, f"v3.7 reads Hopper's mxfp4 layout rightly only where K is a multiple of 64, not {k}")
        return values, scales
