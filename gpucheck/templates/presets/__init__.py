"""Ready-made files that run gpucheck where people run things; ``gpucheck preset NAME`` prints them.

Each is a file of this folder that works as it stands. Its first comment line says what it is, a block of comments on
top what to set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Preset", "presets"]

SUFFIXES = (".sh", ".yaml", ".Dockerfile")


@dataclass(frozen=True)
class Preset:
    """One file."""

    name: str
    title: str
    text: str


def presets() -> dict[str, Preset]:
    """All presets by name."""
    found = (_read(file) for file in sorted(Path(__file__).parent.iterdir()) if file.suffix in SUFFIXES)
    return {preset.name: preset for preset in found}


def _read(file: Path) -> Preset:
    text = file.read_text(encoding="utf-8")
    comments = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    return Preset(file.stem, comments[0].rstrip("."), text)
