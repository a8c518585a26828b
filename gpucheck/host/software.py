"""Versions, paths and content of the software under test, recorded before a run and compared after it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gpucheck.host.text_file import text_of

PACKAGES = ("torch", "triton")


def driver_version(facts: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of the NVIDIA kernel driver; None where there is none."""
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", text_of(facts))
    return match[0] if match else None


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, from its metadata; None where there is none of this name."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def missing_packages() -> list[str]:
    """Which of torch and triton this Python does not have."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def software(library_package: Path | None) -> dict[str, Any]:
    """What is installed: version, folder and fingerprint of torch, triton and the library, where one is under test.

    The library's fingerprint covers the bytes of all its files; those of torch and triton cover path, size and
    modification time of all files and the bytes of their RECORD, since hashing gigabytes would take longer than a run.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "driver": driver_version(),
    }
    if library_package:
        found["triton_kernels"] = {"path": str(library_package), "fingerprint": _content(library_package)}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            found[name] = None
            continue
        folder = Path(next(iter(spec.submodule_search_locations)))
        found[name] = {
            "version": _version(name, folder),
            "path": str(folder),
            "fingerprint": stat_fingerprint(folder, name),
        }
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two answers of :func:`software`, one line each."""
    return [
        f"{name} changed during the run: was {before.get(name)}, is {after.get(name)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _version(name: str, folder: Path) -> str:
    for distribution in metadata.distributions(name=name, path=[str(folder.parent)]):
        return distribution.version
    return "unknown"


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def stat_fingerprint(folder: Path, name: str) -> str:
    """Tells installations of a package apart without reading their files, see :func:`software`."""
    digest = hashlib.sha256()
    lines = list(_stats(str(folder)))
    for record in folder.parent.glob(f"{name}-*.dist-info/RECORD"):
        digest.update(record.read_bytes())
    digest.update("\n".join(sorted(lines)).encode())
    return digest.hexdigest()[:16]


def _stats(folder: str, inside: str = "") -> Iterator[str]:
    """Path, size and modification time of each file below a folder, ``inside`` being its own path.

    It is walked with as few calls as there can be: torch has ten thousand files.
    """
    try:
        entries = os.scandir(folder)
    except OSError:  # as one that holds nothing
        return
    with entries:
        for entry in entries:
            if not entry.is_dir():
                facts = entry.stat(follow_symlinks=False)
                yield f"{inside}{entry.name} {facts.st_size} {facts.st_mtime_ns}"
            elif entry.name != "__pycache__" and not entry.is_symlink():
                yield from _stats(entry.path, f"{inside}{entry.name}/")
