"""The bits of special functions by GPU architecture, as GPUs gave them: digests of the groups of the pool."""

from __future__ import annotations

SPECIAL: dict[str, tuple[int, ...]] = {
    "sm_90": (
        *(4424787684626, 4377756719249, 4358659861721, 4358607186564),
        *(4349943086225, 4417641333325, 4337772616417, 4352787716954),
    ),  # an H200, Triton 3.6.0, 2026-11-30: all 132 multiprocessors, with 8 and with 16 warps
}
"""Each from GPUs all of whose multiprocessors agreed.

A multiprocessor is judged by what most of its GPU give; this table says whether these are right.
"""
