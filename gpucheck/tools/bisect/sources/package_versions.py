"""The versions of a distribution, in order."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from gpucheck.model.errors import InfrastructureError, UsageError

LIBRARIES = ("packaging", "pip._vendor.packaging")
"""What knows versions and wheel names: the well-known package, and the copy that pip carries."""


def between(name: str, old: str, new: str, offered: Mapping[str, bool] | None = None) -> list[str]:
    """The final releases from one version to another, both included, old to new.

    Versions in between that are yanked, pre-releases or local builds are left out.

    Args:
        offered: versions and whether each is yanked; None: those on pip's indexes.

    Raises:
        UsageError: no such version, or the two not in order.
        InfrastructureError: no index answers, or nothing here can order versions.
    """
    from gpucheck.library.fetch import offered_versions

    parse = _parser()
    offered = offered_versions(name) if offered is None else offered
    public = {parse(text): text for text, yanked in sorted(offered.items()) if not yanked and parse(text) is not None}
    ends = []
    for text in (old, new):
        end = parse(text)
        known = {parse(version): version for version in offered}
        if end is None or end not in known:
            near = ", ".join(public[version] for version in sorted(public)[-8:])
            raise UsageError(f"{name} has no wheel of version {text}; its newest are {near or 'none'}")
        public[end] = known[end]
        ends.append(end)
    first, last = ends
    if not first < last:
        raise UsageError(f"--from {old} --to {new}: the versions must be in order, the older one first")
    inside = [version for version in sorted(public) if first <= version <= last]
    return [public[version] for version in inside if version in ends or not (version.is_prerelease or version.local)]


def range_words(versions: Sequence[str]) -> str:
    """``1.0 - 1.4 (3 releases)``; "" for a single one."""
    return "" if len(versions) == 1 else f"{versions[0]} - {versions[-1]} ({len(versions)} releases)"


def suitability() -> Callable[[str], int | None]:
    """How well the wheel of a file name suits this Python and platform, as pip sees it: 0 is best, None not at all."""
    tags, names = _library("tags"), _library("utils")
    order = {tag: number for number, tag in enumerate(tags.sys_tags())}

    def suits(filename: str) -> int | None:
        try:
            offered = names.parse_wheel_filename(filename)[3]
        except ValueError:
            return None
        return min((order[tag] for tag in offered if tag in order), default=None)

    return suits


def _library(module: str) -> Any:
    """A module of the package that knows versions."""
    library = next((name for name in LIBRARIES if _exists(f"{name}.{module}")), None)
    if library is None:
        raise InfrastructureError("ordering versions needs the package packaging: pip install packaging")
    return import_module(f"{library}.{module}")


def _parser() -> Any:
    """``text -> comparable version, or None``."""
    versions = _library("version")

    def parse(text: str) -> Any:
        try:
            return versions.Version(text)
        except versions.InvalidVersion:
            return None

    return parse


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of the package that holds it
        return False
