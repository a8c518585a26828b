"""Bytecode of modules that Python keeps none of: in images without it and folders that nobody may write to.

Python then compiles each module in each process anew, which is most of the time that importing torch takes. What is
kept here counts for source of the same hash alone, as Python's own checked bytecode does: never by time and size, which
the files of two images may share.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import source_hash
from pathlib import Path
from types import CodeType

_Known = dict[str, tuple[bytes, bytes]]  # file -> hash of its source, marshalled code
_HASH = 8  # bytes of a source hash
_MOST_FILES = 16  # in the folder, one for each Python, place of gpucheck and name


class Bytecode:
    """While this context lasts, modules come from bytecode of an earlier process; what had to be compiled is kept."""

    def __init__(self, name: str, cache: Callable[[], Path], packages: Collection[str] = ()) -> None:
        """Nothing is read before a module is loaded that this keeps.

        Args:
            name: of the file; processes that import the same have the same.
            cache: gives the folder that a folder of such files is in.
            packages: top-level packages that it is for; all where none is named.
        """
        place = source_hash(f"{sys.prefix} {__file__} {importlib.util.MAGIC_NUMBER!r} {sys.flags.optimize}".encode())
        self._file = f"{name}-{sys.implementation.cache_tag}-{place.hex()}"
        self._folder: Path | None = None
        with suppress(RuntimeError):  # a user without a home
            self._folder = cache() / "bytecode"
        self._packages = packages
        self._known: _Known | None = None  # as soon as something is asked for
        self._compiled = False
        self._hook = FileFinder.path_hook(
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (partial(_Loader, self), SOURCE_SUFFIXES),  # type: ignore[arg-type]
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )

    def __enter__(self) -> Bytecode:
        sys.path_hooks.insert(0, self._hook)
        sys.path_importer_cache.clear()
        return self

    def __exit__(self, *error: object) -> None:
        sys.path_hooks.remove(self._hook)
        sys.path_importer_cache.clear()
        if self._compiled and self._known and self._folder:
            with suppress(OSError):
                _write(self._folder, self._file, self._known)
        self._known = {}  # what loaded modules still hold of this

    def keeps(self, module: str, path: str) -> bool:
        """Whether the bytecode of a module is a matter of this: Python has none and will write none beside it."""
        if self._packages and module.partition(".")[0] not in self._packages:
            return False
        if os.path.exists(importlib.util.cache_from_source(path)):
            return False
        return sys.dont_write_bytecode or not os.access(os.path.dirname(path), os.W_OK)

    def code(self, path: str, source: bytes) -> CodeType | None:
        """The code of a file with this source; None where it is not known."""
        if self._known is None:
            self._known = self._read()
        digest, code = self._known.get(path, (b"", b""))
        return marshal.loads(code) if digest == source_hash(source) else None

    def add(self, path: str, source: bytes, code: CodeType) -> None:
        """Keeps the code of a file that :meth:`code` did not know."""
        if self._known is not None:
            self._known[path] = source_hash(source), marshal.dumps(code)
            self._compiled = True

    def _read(self) -> _Known:
        try:
            return _read(self._folder / self._file) if self._folder else {}
        except PermissionError:
            self._folder = None
        except (OSError, ValueError, EOFError, TypeError):  # none, or a damaged one
            pass
        return {}


class _Loader(SourceFileLoader):
    """Python's own loader, with other bytecode where Python has none."""

    def __init__(self, kept: Bytecode, name: str, path: str) -> None:
        super().__init__(name, path)
        self._kept = kept

    def get_code(self, fullname: str) -> CodeType | None:
        if not self._kept.keeps(fullname, self.path):
            return super().get_code(fullname)
        source = self.get_data(self.path)
        code = self._kept.code(self.path, source)
        if code is None:
            code = self.source_to_code(source, self.path)
            self._kept.add(self.path, source, code)
        return code


def _read(path: Path) -> _Known:
    """What a file holds; nothing where it is damaged.

    Raises:
        PermissionError: another user could have written it.
    """
    with open(path, "rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
            raise PermissionError(f"{path} is open to other users")
        os.utime(file.fileno())  # the files used last are those that stay
        content = file.read()
    if source_hash(content[_HASH:]) != content[:_HASH]:
        return {}
    known: _Known = marshal.loads(content[_HASH:])
    return known


def _write(folder: Path, name: str, known: _Known) -> None:
    """Writes a file in one step, and removes those used least lately where there are many."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    content, fresh = marshal.dumps(known), folder / f"{name}.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(source_hash(content) + content)
    os.replace(fresh, folder / name)
    for old in sorted(folder.iterdir(), key=os.path.getmtime, reverse=True)[_MOST_FILES:]:
        old.unlink()
