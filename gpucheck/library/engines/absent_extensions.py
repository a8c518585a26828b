"""Stands for the compiled modules of an engine that was taken out of its wheel without them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from gpucheck.library.engines.engine_fetch import recorded


class AbsentExtensions:
    """Finds a compiled module that the wheel's RECORD names and that is not here, as an empty module.

    It registers no operator and has no names, so what would use one raises AttributeError, and no number can come from
    it.
    """

    def __init__(self, root: Path, package: str, said: list[str]) -> None:
        """Args:
        root: the folder with the package and its metadata.
        said: the names of the modules that were asked for are added here.
        """
        self._said = said
        paths = (path for path in recorded(root, package) if path.endswith(".so") and not (root / path).exists())
        self._names = {path.partition(".")[0].replace("/", ".") for path in paths}

    def install(self) -> None:
        """From now on the import finds them."""
        sys.meta_path.append(self)  # type: ignore[arg-type]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in self._names else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._said.append(f"empty module {spec.name}")
        return ModuleType(spec.name, "a compiled module that is not here")

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""
