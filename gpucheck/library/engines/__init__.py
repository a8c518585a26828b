"""One adapter for each serving engine: its own loading and forward of an expert block, for checks to judge."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gpucheck.model.errors import Inapplicable, UsageError

if TYPE_CHECKING:
    import torch

    from gpucheck.library.adapters.base import Adapter
    from gpucheck.library.engines.base import Engine
    from gpucheck.model.plan import PlannedEngine

MODULES = {
    "vllm": "gpucheck.library.engines.vllm_engine:Vllm",
    "sglang": "gpucheck.library.engines.sglang_engine:Sglang",
}

_planned: PlannedEngine | None = None
_loaded: Engine | None = None


def adapter_class(name: str) -> type[Engine]:
    """The adapter of an engine; importing it imports neither torch nor the engine.

    Raises:
        UsageError: no engine has this name.
    """
    if name not in MODULES:
        raise UsageError(f"no engine is called {name!r}; known are {', '.join(MODULES)}")
    module, _, attribute = MODULES[name].partition(":")
    adapter: type[Engine] = getattr(import_module(module), attribute)
    return adapter


def settle(planned: PlannedEngine, device: str, scratch: str) -> None:
    """Makes this fresh process one of an engine: its environment and its search path. Nothing is imported yet.

    Args:
        device: "cuda" or "cpu".
        scratch: a folder for what it keeps beside the cases, which somebody removes afterwards.
    """
    from gpucheck.library.engines.base import Engine

    global _planned
    Engine.scratch = scratch
    adapter_class(planned["name"]).settle(planned, device)
    _planned = planned


def import_ahead(planned: PlannedEngine, device: str) -> None:
    """Imports in this process, which forks those of the engine, what most of the time of their import goes into.

    None of it is the engine's own or asks for a GPU or a rank: each process of the engine imports that by itself, in
    the environment of its case.

    Raises:
        RuntimeError: forks of this process cannot use what was imported.
        Exception: an import fails; the engine is then to meet that itself.
    """
    from gpucheck.library.engines import base

    adapter_class(planned["name"]).settle(planned, device)
    present = [name for name in adapter_class(planned["name"]).ahead if find_spec(name)]
    with base.fit_to_fork(device):
        for name in present:
            import_module(name)


def load(library: Adapter, device: torch.device) -> Engine:
    """The engine of this process, imported at the first call.

    Args:
        library: the one under test, already imported: the engine then finds it under its usual name, and no module
            of it exists twice.

    Raises:
        Inapplicable: this process has no engine, or it does not import here.
    """
    global _loaded
    if _planned is None:
        raise Inapplicable("no engine is at hand: install one, or name one, for example --engine vllm==0.33.0")
    if _loaded is None:
        _loaded = adapter_class(_planned["name"])(_planned, library, device)
    return _loaded
