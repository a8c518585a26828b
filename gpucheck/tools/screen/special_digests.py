"""The bits of special functions by GPU architecture, as GPUs gave them: digests of the groups of the pool."""

from __future__ import annotations

SPECIAL: dict[str, list[int]] = {}
"""Each from GPUs all of whose multiprocessors agreed; absent ones are judged by what most multiprocessors give."""
