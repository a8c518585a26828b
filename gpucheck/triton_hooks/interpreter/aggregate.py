"""Structures of several values in kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def install() -> None:
    """Makes ``triton.aggregate`` build plain dataclasses.

    Triton's own wraps fields in compile-time constants, which interpreted code takes for values: ``None`` in a field
    is then no longer ``None``. Call it before kernels that use aggregates are defined.
    """
    import triton

    if not hasattr(triton, "aggregate"):
        return
    make: Any = dataclass(frozen=True)
    triton.aggregate = make
