"""The checks, by name; imported on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gpucheck.model.errors import UsageError

if TYPE_CHECKING:
    from gpucheck.checks.base import Check

CHECKS = {
    "matmul": "gpucheck.checks.matmul:Matmul",
    "moe": "gpucheck.checks.moe:Moe",
    "routing": "gpucheck.checks.routing:Routing",
    "topk": "gpucheck.checks.topk:TopK",
    "mxfp": "gpucheck.checks.mxfp:Mxfp",
    "swiglu": "gpucheck.checks.swiglu:Swiglu",
    "attention": "gpucheck.checks.attention:Attention",
}
UNLISTED = {"canary": "gpucheck.checks.canary:Canary"}  # for gpucheck's own use: no scenario asks for it by name


def load(name: str) -> Check:
    """The check called ``name``.

    Raises:
        UsageError: no check has that name.
    """
    places = {**CHECKS, **UNLISTED}
    if name not in places:
        raise UsageError(f"unknown check {name!r}; known: {', '.join(CHECKS)}")
    module, _, attribute = places[name].partition(":")
    check: Check = getattr(import_module(module), attribute)()
    return check
