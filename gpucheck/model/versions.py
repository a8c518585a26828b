"""Versions as far as compatibility is told by them here."""

from __future__ import annotations

import re


def major_minor(version: str) -> tuple[int, int] | None:
    """``"3.7.0+git1234"`` as ``(3, 7)``; None where the text begins otherwise, as ``"unknown"`` does."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None
