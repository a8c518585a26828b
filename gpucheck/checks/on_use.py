"""torch, and what needs it, for the files of checks: each is imported when something of it is first asked for.

So checks are listed, validated and planned without torch, and no function has to begin with imports.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


class OnUse:
    """Stands for a module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


if TYPE_CHECKING:
    import torch as torch

    from gpucheck.checks import experts as experts
    from gpucheck.checks import onehot_attention as onehot_attention
    from gpucheck.checks import operands as operands
    from gpucheck.checks import torch_model as torch_model
    from gpucheck.checks import wide as wide
    from gpucheck.verify import bounds as bounds
    from gpucheck.verify import extremes as extremes
else:
    torch = OnUse("torch")
    experts, onehot_attention, operands, torch_model, wide = (
        OnUse(f"gpucheck.checks.{name}") for name in ("experts", "onehot_attention", "operands", "torch_model", "wide")
    )
    bounds, extremes = (OnUse(f"gpucheck.verify.{name}") for name in ("bounds", "extremes"))
