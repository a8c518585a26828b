"""Which release an engine's files are those of: its version can be told by anybody, and a pod may have patched them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

ON_THE_WAY = {
    "vllm": ("model_executor/layers/fused_moe", "model_executor/layers/quantization", "model_executor/models"),
    "sglang": ("srt/layers/moe", "srt/layers/quantization", "srt/models"),
}
"""Folders of each package whose Python files a gpt-oss goes through from its checkpoint to the library."""
KNOWN: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "0.12.0": "d443bf7cce2a59ef",
        "0.16.0": "6cad176eeaa37e46",
        "0.20.0": "db505d27037d6b02",
        "0.25.1": "84da49f7439e48a2",
        "0.26.0": "f21b43b1248b449d",
        "0.27.0": "0132750b621fcc02",
        "0.28.0": "c8d10e9050d471c7",
        "0.30.0": "08dbeb518b0f3448",
        "0.33.0": "f65e8fc6642d3f73",
    },
    "sglang": {
        "0.5.5": "a9a961db2ec288c5",
        "0.5.12": "d4fd3f9dccce550a",
        "0.5.18": "e94cfdbef662c83b",
        "0.5.19": "6f30315233b80cf6",
        "0.5.23": "6146283cd42ac947",
    },
}
"""Engine -> version -> content of its wheel."""
RELEASE = "its files are those of the release"


def content_of(root: Path, name: str) -> str:
    """A hash of the Python files in :data:`ON_THE_WAY`, their paths and bytes; 16 digits.

    Args:
        root: the folder that contains the package.
    """
    package, found = root / name, hashlib.sha256()
    for folder in ON_THE_WAY[name]:
        for path in sorted((package / folder).rglob("*.py")):
            found.update(f"{path.relative_to(package).as_posix()}\0".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def identity(root: Path, name: str, version: str) -> str:
    """What is known of a copy beside its version, in words."""
    expected, content = KNOWN.get(name, {}).get(version), content_of(root, name)
    if expected is None:
        return f"known only by its version: gpucheck does not know the files of this release (content {content})"
    if content == expected:
        return RELEASE
    return f"changed: its files have the content {content}, those of the release {expected}"
