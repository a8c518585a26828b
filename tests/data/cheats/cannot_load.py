"""Needs what is not there."""

from __future__ import annotations

import no_such_package
from torch import Tensor, nn


class ModelNew(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return no_such_package.gelu(x)
