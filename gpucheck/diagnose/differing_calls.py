"""What it says that the calls of one process gave different bits."""

from __future__ import annotations

from collections.abc import Sequence

TELLING = 4  # calls that tell every second one from the first one
MOST_TOLD = 16  # calls named in a detail


def how_calls_differ(digests: Sequence[str]) -> str:
    """In words, how the bits of calls differ that do not follow the fill."""
    calls = len(digests)
    if calls >= TELLING and digests[0] != digests[1] and all(digests[n] == digests[n % 2] for n in range(calls)):
        return f"every second of {calls} calls gave other bits, whatever memory held before"
    if calls > 2 and digests[0] != digests[1] and len(set(digests[1:])) == 1:
        return f"the first of {calls} calls gave other bits than those after it"
    start = next((n for n in range(calls) if digests[n] != digests[0]), calls)
    if 1 < start < calls - 1 and len(set(digests[start:])) == 1:
        return f"from call {start + 1} of {calls} on, the bits were different"
    order = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
    shown = " ".join(_letter(order[digest]) for digest in digests[:MOST_TOLD]) + " ..." * (calls > MOST_TOLD)
    return f"equal inputs in equal memory gave {len(order)} different outputs in {calls} calls: {shown}"


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"#{number + 1}"
