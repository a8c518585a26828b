"""The smallest part of a whole that still does what the whole does; knows nothing of patches.

The algorithm is ddmin: A. Zeller and R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE
Transactions on Software Engineering 28 (2002), section 3.
"""

from __future__ import annotations

from collections.abc import Callable

Part = tuple[int, ...]
"""Ascending indexes."""


def minimise(count: int, works: Callable[[Part], bool]) -> Part:
    """A part that works and from which nothing can be taken alone.

    Args:
        count: of elements in the whole, which is known to work; the empty part is known not to.
        works: whether a part does what the whole does; one that cannot be told does not. It is asked once a part.
    """
    answers: dict[Part, bool] = {(): False}

    def asked(part: Part) -> bool:
        if part not in answers:
            answers[part] = works(part)
        return answers[part]

    whole, pieces = tuple(range(count)), 2
    while len(whole) > 1:
        chunks = _split(whole, pieces)
        rests = [tuple(element for element in whole if element not in chunk) for chunk in chunks]
        smaller = next((chunk for chunk in chunks if asked(chunk)), None)
        if smaller is not None:
            whole, pieces = smaller, 2
            continue
        smaller = next((rest for rest in rests if asked(rest)), None)
        if smaller is not None:
            whole, pieces = smaller, max(2, pieces - 1)
        elif pieces < len(whole):
            pieces = min(len(whole), 2 * pieces)
        else:
            break
    return whole


def _split(whole: Part, pieces: int) -> list[Part]:
    """The whole in consecutive pieces of nearly equal size."""
    bounds = [len(whole) * number // pieces for number in range(pieces + 1)]
    return [whole[first:last] for first, last in zip(bounds, bounds[1:], strict=False)]
