"""The checks, by name; imported on use."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
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
    "generation": "gpucheck.checks.generation:Generation",
    "transformers_moe": "gpucheck.checks.transformers_moe:TransformersMoe",
}
NEEDS = {"transformers_moe": ("transformers", "integrations/mxfp4.py")}
"""Checks of other software: its package and the file in it that they call."""


def installed(name: str) -> bool:
    """Whether what the check called ``name`` calls is installed; looks for files and imports nothing."""
    if name not in NEEDS:
        return True
    package, file = NEEDS[name]
    spec = find_spec(package)
    return spec is not None and any((Path(folder) / file).is_file() for folder in spec.submodule_search_locations or ())


def load(name: str) -> Check:
    """The check called ``name``.

    Raises:
        UsageError: no check has that name.
    """
    if name not in CHECKS:
        raise UsageError(f"unknown check {name!r}; known: {', '.join(CHECKS)}")
    module, _, attribute = CHECKS[name].partition(":")
    check: Check = getattr(import_module(module), attribute)()
    return check
