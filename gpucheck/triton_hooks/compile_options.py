"""What a kernel was compiled with, in words; needs nothing but what Triton keeps of it, so it serves on a GPU too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def constants(src: Any) -> dict[str, Any]:
    """Compile-time constants by parameter, in a form that JSON takes; those inside of tuples are left out.

    Args:
        src: ``src`` of Triton's compiled kernel, or what is to be compiled (Triton 3.1 or later).
    """
    names, found = src.fn.arg_names, {}
    for place, value in (src.constants or {}).items():
        index = place[0] if isinstance(place, tuple) and len(place) == 1 else place
        if isinstance(index, int) and index < len(names):
            found[names[index]] = _plain(value)
        elif isinstance(index, str):
            found[index] = _plain(value)
    return found


def in_words(config: Mapping[str, Any], warps: int | None, stages: int | None) -> str:
    """The numbers among the constants, warps and stages: ``BLOCK_M=128, ..., 8 warps, 3 stages``."""
    words = [f"{name}={value}" for name, value in config.items() if type(value) is int and value > 1]
    words += [f"{warps} warps"] if warps is not None else []
    words += [f"{stages} stages"] if stages is not None else []
    return ", ".join(words)


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(getattr(value, "__name__", value))
