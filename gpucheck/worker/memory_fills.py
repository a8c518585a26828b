"""How often a case runs in the child, with which fill of memory, and what it means if launches differ.

The fills follow no period: so a fault of every second or every fourth call is never taken for one of memory content.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpucheck.model.conditions import FILLS

FURTHER_FILL = 0x3F  # tells an element that nobody wrote from one computed of 0 or NaN
TELLING = 4  # passes that tell the fill from the number of the call
SURE = 8  # passes after which outputs that follow the fill do not do so by luck


def fill_of(number: int) -> int:
    """What memory is filled with before a pass: the Thue-Morse sequence."""
    return FILLS[bin(number).count("1") % 2]


def due(repeat: int, passes: int) -> bool:
    """Whether a case must run again whatever its outputs were so far."""
    return passes < max(repeat, len(FILLS))


def wants_another_pass(repeat: int, passes: int, digests: Sequence[str], fills: Sequence[int]) -> bool:
    """Whether a case must run again, after ``passes`` passes with these digests and fills."""
    if due(repeat, passes):
        return True
    if len(set(digests)) == 1:
        return False
    return passes < TELLING or (passes < SURE and _follow(digests, fills))


def depends_on_fill(digests: Sequence[str], fills: Sequence[int]) -> bool:
    """Whether outputs differ by the fill alone: those with equal fills agree. False before there are SURE launches.

    Args:
        digests: of the outputs, launch by launch.
        fills: what memory was filled with, launch by launch.
    """
    return len(digests) >= SURE and len(set(digests)) > 1 and _follow(digests, fills)


def _follow(digests: Sequence[str], fills: Sequence[int]) -> bool:
    by_fill: dict[int, str] = {}
    return all(by_fill.setdefault(fill, digest) == digest for digest, fill in zip(digests, fills, strict=True))
