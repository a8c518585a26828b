"""``canary``: attention whose result is spoiled by one bit, on the device, right after the launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpucheck.checks.attention import Attention
from gpucheck.checks.base import Runtime
from gpucheck.checks.on_use import torch
from gpucheck.model import canary
from gpucheck.model.case import Case, CheckSpec

if TYPE_CHECKING:
    from torch import Tensor


class Canary(Attention):
    """Wrong everywhere it runs, and everywhere alike; no scenario lists it, see the key ``canary`` of scenarios."""

    spec = CheckSpec(
        name=canary.CHECK, summary="attention with one bit flipped on purpose", params=Attention.spec.params
    )

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        outputs = super().launch(case, prepared, runtime)
        outputs["o"].view(torch.int16)[canary.INDEX] ^= 1 << canary.BIT
        return outputs
