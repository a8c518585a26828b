"""Which library to test: reads ``--library`` and finds the copy without importing it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from gpucheck.library import copies
from gpucheck.library.copies import PACKAGE, LibraryCopy, describe, is_genuine, missing_files
from gpucheck.library.identity import check_installed_library
from gpucheck.library.installed import locate_installed
from gpucheck.model.errors import InfrastructureError, UsageError

__all__ = ["DEFAULT_WHEEL", "LibraryCopy", "Source", "SourceKind", "parse_source", "resolve"]

DEFAULT_WHEEL = ("vllm", "0.33.0")
"""Taken where nothing is asked for and nothing is installed."""

FORMS = """\
  installed            the copy this Python would import: triton_kernels, or the one inside vllm
  path:DIR             a folder: triton_kernels itself, or one that holds it
  wheel:NAME==VERSION  the copy inside a public wheel, for example wheel:vllm==0.33.0"""


class SourceKind(Enum):
    """Forms of ``--library``."""

    DEFAULT = "default"  # the installed copy, else the default wheel
    INSTALLED = "installed"
    PATH = "path"
    WHEEL = "wheel"


@dataclass(frozen=True)
class Source:
    """Where the library is to be taken from."""

    kind: SourceKind
    path: Path | None = None  # PATH
    distribution: str = ""  # WHEEL
    version: str = ""  # WHEEL

    def __str__(self) -> str:
        if self.kind is SourceKind.PATH:
            return f"path:{self.path}"
        if self.kind is SourceKind.WHEEL:
            return f"wheel:{self.distribution}=={self.version}"
        return self.kind.value


def parse_source(text: str | None) -> Source:
    """Reads the value of ``--library``; None stands for the default.

    Raises:
        UsageError: the text has none of the three forms.
    """
    if text is None:
        return Source(SourceKind.DEFAULT)
    kind, colon, rest = text.strip().partition(":")
    if kind == "installed" and not colon:
        return Source(SourceKind.INSTALLED)
    if kind == "path" and rest.strip():
        return Source(SourceKind.PATH, path=Path(os.path.abspath(os.path.expanduser(rest.strip()))))
    if kind == "wheel":
        from gpucheck.library.cache import split_requirement

        requirement = split_requirement(rest)
        if requirement:
            return Source(SourceKind.WHEEL, distribution=requirement[0], version=requirement[1])
    raise UsageError(f"--library {text!r} is not understood; expected one of\n{FORMS}")


def resolve(source: Source | None) -> LibraryCopy:
    """Finds the copy that ``source`` names; fetches it where it must come from a wheel and is not cached.

    None is the default: the genuine installed copy, else the one of :data:`DEFAULT_WHEEL`.

    Raises:
        UsageError: no such folder, release or generation.
        InfrastructureError: nothing installed, an unrelated package in the way, or no network.
    """
    kind = source.kind if source else SourceKind.DEFAULT
    if source and kind is SourceKind.PATH:
        return describe(_package_under(source.path or Path()), "path")
    if source and kind is SourceKind.WHEEL:
        from gpucheck.library.fetch import fetch

        return fetch(source.distribution, source.version)

    check_installed_library()
    installed = locate_installed()
    if installed:
        return installed
    if kind is SourceKind.INSTALLED:
        raise InfrastructureError(
            "no triton_kernels is installed in this Python.\n"
            f"  looked for  {PACKAGE}, and vllm/third_party/{PACKAGE} inside an installed vllm\n"
            "  try         --library path:DIR or --library wheel:{}=={}".format(*DEFAULT_WHEEL)
        )
    from gpucheck.library.fetch import fetch

    return fetch(*DEFAULT_WHEEL)


def _package_under(folder: Path) -> Path:
    """The library's package folder that the user meant by ``folder``."""
    if not folder.is_dir():
        raise UsageError(f"--library path:{folder}: there is no such folder")
    if is_genuine(folder):
        if folder.name != PACKAGE:
            raise UsageError(
                f"--library path:{folder}: this is a copy of the library, but its folder is named {folder.name!r}.\n"
                f"  expected  a folder named {PACKAGE!r}, because the library imports itself by that name\n"
                f"  try       rename it, or put it into a folder of its own as {PACKAGE}"
            )
        return folder
    candidates = [folder / place for place in copies.PLACES]
    for package in candidates:
        if is_genuine(package):
            return package
    raise UsageError(_nothing_found(folder, candidates))


def _nothing_found(folder: Path, candidates: list[Path]) -> str:
    lines = [f"--library path:{folder}: no genuine copy of {PACKAGE} there."]
    for package in [folder, *candidates]:
        state = f"lacks {', '.join(missing_files(package))}" if package.is_dir() else "no such folder"
        lines.append(f"  looked in  {package}: {state}")
    lines.append(f"  expected   a folder {PACKAGE} with {', '.join(copies.GENUINE_FILES)}")
    return "\n".join(lines)
