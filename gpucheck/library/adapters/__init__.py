"""One adapter for each API generation of the library; :func:`load` imports the library under test and wraps it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.library import source_import
from gpucheck.model.errors import Inapplicable, InfrastructureError, UsageError

if TYPE_CHECKING:
    from gpucheck.library.adapters.base import Adapter

MODULES = {
    "v3.4": "gpucheck.library.adapters.v34",
    "v3.5": "gpucheck.library.adapters.v35",
    "v3.6": "gpucheck.library.adapters.v36",
    "v3.7": "gpucheck.library.adapters.v37",
    "v3.8": "gpucheck.library.adapters.v38",
}


def _has_constexpr_function() -> bool:
    return hasattr(import_module("triton.language"), "constexpr_function")


def _target_info() -> Any:
    try:
        return import_module("triton.language.target_info")
    except ImportError:
        return None


# What each generation imports from Triton: the Triton versions that have it, and the test for it.
TRITON_NEEDS: dict[str, tuple[str, Callable[[], bool]]] = {
    "v3.4": ("Triton 3.4", _has_constexpr_function),
    "v3.5": ("Triton 3.5 or later", lambda: _target_info() is not None),
    "v3.6": ("Triton 3.5 or later", lambda: _target_info() is not None),
    "v3.7": ("Triton 3.5 or later", lambda: _target_info() is not None),
    "v3.8": ("Triton 3.8 or later", lambda: hasattr(_target_info(), "is_hip_gfx1250")),
}


def load(root: Path, generation: str) -> Adapter:
    """Imports ``triton_kernels`` from ``root`` into this process and returns its adapter.

    Args:
        root: folder that holds the package folder ``triton_kernels``.
        generation: a key of :data:`MODULES`.

    Raises:
        RuntimeError: there is no library, since no check said that it needs one.
        UsageError: no adapter for this generation.
        Inapplicable: the library does not run with the installed Triton.
        InfrastructureError: ``root`` holds no library, or another copy was imported instead.
    """
    if not generation:
        raise RuntimeError("this check says that it needs no library (needs_library = False) and asks for one")
    if generation not in MODULES:
        raise UsageError(f"no adapter for generation {generation!r}; known are {', '.join(MODULES)}")
    if not (root / "triton_kernels").is_dir():
        raise InfrastructureError(f"{root} holds no folder triton_kernels")
    triton = import_module("triton")
    needed, available = TRITON_NEEDS[generation]
    if not available():
        raise Inapplicable(f"triton_kernels {generation} needs {needed}, this is Triton {triton.__version__}")
    _import_library(root)
    try:
        return _adapter_class(generation)(root)
    except (ImportError, AttributeError) as error:
        reason = f"triton_kernels {generation} does not import with Triton {triton.__version__}"
        raise Inapplicable(f"{reason}: {type(error).__name__}: {error}") from error


def _adapter_class(generation: str) -> type[Adapter]:
    name = "Adapter" + generation.upper().replace(".", "")
    adapter: type[Adapter] = getattr(import_module(MODULES[generation]), name)
    return adapter


def _import_library(root: Path) -> None:
    """Imports the package's source from ``root`` and nothing else; under the interpreter also repairs it.

    ``root`` may hold unrelated packages, so it leads ``sys.path`` only while the library is found.
    """
    source_import.install()
    package = (root / "triton_kernels").resolve()
    saved = list(sys.path)
    sys.path.insert(0, str(root))
    try:
        library = import_module("triton_kernels")
    finally:
        sys.path[:] = saved
    origin = Path(library.__file__ or next(iter(library.__path__))).resolve()
    if package != origin and package not in origin.parents:
        raise InfrastructureError(
            f"triton_kernels was asked for from {package} but this process has it from {origin}: "
            "a process can hold one copy; start a fresh one"
        )
    interpreter = sys.modules.get("gpucheck.triton_hooks.interpreter")
    if interpreter is not None and interpreter.installed():
        interpreter.repair_library()
