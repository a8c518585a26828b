"""What this Python has installed, found without importing it."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

from gpucheck.library.copies import PACKAGE, LibraryCopy, describe, is_genuine


def locate_installed() -> LibraryCopy | None:
    """The genuine copy this Python would import, or the one an installed vllm carries; None where there is neither.

    Raises:
        UsageError: the copy is of no supported generation.
    """
    for folder in spec_folders(find_spec(PACKAGE)):
        if is_genuine(folder):
            return describe(folder, "installed", installed=True)
    for folder in spec_folders(find_spec("vllm")):
        package = folder / "third_party" / PACKAGE
        if is_genuine(package):
            return describe(package, f"installed ({_release('vllm')})", installed=True)
    return None


def find_spec(name: str) -> ModuleSpec | None:
    """The import spec of a top-level package, found without importing it."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a stand-in without a spec lies in sys.modules
        return None


def spec_folders(spec: ModuleSpec | None) -> list[Path]:
    """The folders a package spec points at."""
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [Path(folder) for folder in spec.submodule_search_locations]


def _release(distribution: str) -> str:
    """Name and version of an installed distribution, or the name alone."""
    from importlib import metadata

    try:
        return f"{distribution} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return distribution
