"""Imports the library from its source alone: what is executed is what its content hash covers.

Python executes byte code from ``__pycache__`` where its header fits the source's time and size, or says that nobody
need check. Byte code of other source then runs under this source's hash.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from gpucheck.library.copies import PACKAGE
from gpucheck.model.errors import InfrastructureError


def install() -> None:
    """From now on this process compiles each module of the library when it imports it. Further calls do nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]


_compiled: dict[tuple[str, bytes], CodeType] = {}  # by path and source


def compile_ahead(root: Path) -> None:
    """Compiles the library for processes that are forked from this one, each of which would do it by itself.

    They take what was made of the very bytes that they read: a file that has changed since is compiled again.

    Args:
        root: folder that holds the package folder ``triton_kernels``.
    """
    for path in map(str, sorted((root / PACKAGE).rglob("*.py"))):
        with suppress(Exception):  # each process meets that too, if it imports the module
            loader = SourceFileLoader(PACKAGE, path)
            source = loader.get_data(path)
            _compiled[path, source] = loader.source_to_code(source, path)


class _Finder:
    """Finds the library's modules where Python would, and has them loaded from source."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec; None leaves it to other finders.

        Raises:
            InfrastructureError: it would be loaded from something else than source.
        """
        if name.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.origin is None:
            return spec
        if not isinstance(spec.loader, SourceFileLoader):
            raise InfrastructureError(
                f"{name} would be loaded from {spec.origin}, expected Python source: the library's content hash does "
                "not cover it; remove that file, or put the source beside it"
            )
        spec.loader = _FromSource(name, spec.origin)
        spec.cached = None
        return spec


class _FromSource(SourceFileLoader):
    """Reads and writes no byte code."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        code: CodeType = _compiled.get((path, source)) or self.source_to_code(source, path)
        return code
