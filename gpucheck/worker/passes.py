"""How often a case runs in the child, in memory filled with what, and what it means that launches differ."""

from __future__ import annotations

from collections.abc import Sequence

FILLS = (0xFF, 0x00)  # bytes that memory holds before a pass, by turns


def fill_of(number: int) -> int:
    """What memory is filled with before a pass."""
    return FILLS[number % len(FILLS)]


def wants_another_pass(repeat: int, passes: int, digests: Sequence[str]) -> bool:
    """Whether a case is to run again after so many passes whose outputs have these digests."""
    if repeat > 1 or passes < len(FILLS):
        return passes < max(repeat, len(FILLS))
    return passes == len(FILLS) and len(set(digests)) > 1


def depends_on_fill(digests: Sequence[str], fills: Sequence[int]) -> bool:
    """Whether outputs differ, and all with the same fill agree; tells nothing before one fill has come twice.

    Args:
        digests: of the outputs, launch by launch.
        fills: what memory was filled with, launch by launch.
    """
    by_fill = [{digest for digest, fill in zip(digests, fills, strict=True) if fill == each} for each in set(fills)]
    return len(digests) > len(FILLS) and len(set(digests)) > 1 and all(len(seen) == 1 for seen in by_fill)
