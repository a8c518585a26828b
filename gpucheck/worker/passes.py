"""How often a case runs in the child, in memory filled with what, and what it means that passes differ."""

from __future__ import annotations

FILLS = (0xFF, 0x00)  # bytes that memory holds before a pass, by turns


def wants_another_pass(repeat: int, digests: list[str]) -> bool:
    """Whether a case is to run again after passes that gave these digests."""
    if repeat > 1 or len(digests) < len(FILLS):
        return len(digests) < max(repeat, len(FILLS))
    return len(digests) == len(FILLS) and len(set(digests)) > 1


def depends_on_fill(digests: list[str]) -> bool:
    """Whether passes differ, and all passes with the same fill agree; tells nothing before one fill has come twice."""
    by_fill = [set(digests[number :: len(FILLS)]) for number in range(len(FILLS))]
    return len(digests) > len(FILLS) and len(set(digests)) > 1 and all(len(seen) == 1 for seen in by_fill)
