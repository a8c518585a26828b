"""Versions, paths and content of the software under test, recorded before a run and compared after it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton")


def gpu_names() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to a process, by name, without touching CUDA.

    Asks the driver's own command line tool; no tool, no GPU.
    """
    return [name for (name,) in visible(smi("name"))]


Row = tuple[str, str, list[str]]
"""Index and UUID of a GPU, and what was asked about it."""


def smi(*fields: str, seconds: float = 30.0) -> list[Row]:
    """What nvidia-smi says of each GPU of the machine; nothing where there is no such tool, or it does not answer."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(['index', 'uuid', *fields])}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode:
        return []
    rows = [[part.strip() for part in line.split(",", 1 + len(fields))] for line in answer.stdout.splitlines()]
    return [(row[0], row[1], row[2:]) for row in rows if len(row) == 2 + len(fields)]


def visible(rows: list[Row]) -> list[list[str]]:
    """What was asked about the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [answers for _, _, answers in rows]
    found = []
    for wanted in (part.strip() for part in listed.split(",")):
        match = [answers for index, uuid, answers in rows if wanted == index or (wanted and uuid.startswith(wanted))]
        if not match:
            break  # CUDA ignores what follows an unknown entry
        found += match[:1]
    return found


def missing_packages() -> list[str]:
    """Which of torch and triton this Python does not have."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def software(library_package: Path) -> dict[str, Any]:
    """What is installed: version, folder and fingerprint of torch, triton and the library.

    The library's fingerprint covers the bytes of all its files; those of torch and triton cover path, size and
    modification time of all files and the bytes of their RECORD, since hashing gigabytes would take longer than a run.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "triton_kernels": {"path": str(library_package), "fingerprint": _content(library_package)},
    }
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            found[name] = None
            continue
        folder = Path(next(iter(spec.submodule_search_locations)))
        found[name] = {"version": _version(name, folder), "path": str(folder), "fingerprint": _stat_walk(folder, name)}
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


def _stat_walk(folder: Path, name: str) -> str:
    digest = hashlib.sha256()
    lines = []
    for root, folders, files in os.walk(folder):
        folders[:] = [entry for entry in folders if entry != "__pycache__"]
        for file in files:
            facts = os.stat(os.path.join(root, file), follow_symlinks=False)
            lines.append(f"{os.path.relpath(os.path.join(root, file), folder)} {facts.st_size} {facts.st_mtime_ns}")
    for record in folder.parent.glob(f"{name}-*.dist-info/RECORD"):
        digest.update(record.read_bytes())
    digest.update("\n".join(sorted(lines)).encode())
    return digest.hexdigest()[:16]
