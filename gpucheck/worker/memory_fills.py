"""How often a case runs in the child, in memory filled with what, and what it means that launches differ.

The fills follow no period: what comes again with every second or every fourth call is never taken for what memory held.
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


def wants_another_pass(repeat: int, passes: int, digests: Sequence[str], fills: Sequence[int]) -> bool:
    """Whether a case is to run again after so many passes whose launches have these digests, in memory filled so."""
    if passes < max(repeat, len(FILLS)):
        return True
    if len(set(digests)) == 1:
        return False
    return passes < TELLING or (passes < SURE and _follow(digests, fills))


def depends_on_fill(digests: Sequence[str], fills: Sequence[int]) -> bool:
    """Whether outputs differ, and all with the same fill agree; tells nothing before so many launches that it is sure.

    Args:
        digests: of the outputs, launch by launch.
        fills: what memory was filled with, launch by launch.
    """
    return len(digests) >= SURE and len(set(digests)) > 1 and _follow(digests, fills)


def _follow(digests: Sequence[str], fills: Sequence[int]) -> bool:
    by_fill: dict[int, str] = {}
    return all(by_fill.setdefault(fill, digest) == digest for digest, fill in zip(digests, fills, strict=True))
