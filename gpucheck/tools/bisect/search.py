"""Where in a history something changed, found with few questions; knows nothing of runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum


class Side(str, Enum):
    """On which side of the change a candidate lies."""

    BEFORE = "before"
    AFTER = "after"
    UNKNOWN = "unknown"  # asked, and cannot be told


@dataclass(frozen=True)
class Found:
    """What is known when no question is left that narrows the change down."""

    before: int  # candidate nearest to the change that lies before it
    after: int  # nearest that lies after it
    sides: tuple[Side | None, ...]  # of every candidate; None: never asked

    @property
    def exact(self) -> bool:
        """Whether nothing lies between the two."""
        return self.after == self.before + 1

    @property
    def relapses(self) -> list[tuple[int, int]]:
        """Pairs of a candidate after a change and the next known one, which is as before: more changes than one."""
        known = [(place, side) for place, side in enumerate(self.sides) if side in (Side.BEFORE, Side.AFTER)]
        return [
            (first, second)
            for (first, side), (second, next_side) in zip(known, known[1:], strict=False)
            if side is Side.AFTER and next_side is Side.BEFORE
        ]


def search(keys: Sequence[Hashable], ask: Callable[[int], Side]) -> Found:
    """Finds the first change between the first candidate and the last.

    About log2 of the number of candidates are asked, and few more beside those that cannot be told. Where what becomes
    known shows several changes, the first one is narrowed down.

    Args:
        keys: one a candidate, in order; candidates with equal keys are equal, and one of them is asked. The first is
            known to lie before the change and the last after it.
        ask: the side of the candidate with this index.
    """
    if len(keys) < 2 or keys[0] == keys[-1]:
        raise ValueError("a change lies between two candidates that differ")
    known: dict[Hashable, Side] = {keys[0]: Side.BEFORE, keys[-1]: Side.AFTER}
    while True:
        sides = [known.get(key) for key in keys]
        before, after = _bracket(sides)
        place = _next(sides, before, after)
        if place is None:
            return Found(before, after, tuple(sides))
        known[keys[place]] = ask(place)


def _bracket(sides: Sequence[Side | None]) -> tuple[int, int]:
    """The first candidate after a change, and the last known one before it."""
    after = sides.index(Side.AFTER)
    return max(place for place in range(after) if sides[place] is Side.BEFORE), after


def _next(sides: Sequence[Side | None], before: int, after: int) -> int | None:
    """The candidate to ask next: in the middle, and away from those that could not be told, which come in blocks."""
    unknown = [place for place in range(before + 1, after) if sides[place] is Side.UNKNOWN]

    def worth(place: int) -> tuple[int, int]:
        nearest = min((abs(place - other) for other in unknown), default=len(sides))
        middle = abs(2 * place - before - after)
        return min(place - before, after - place, 2 * nearest), -middle

    return max((place for place in range(before + 1, after) if sides[place] is None), key=worth, default=None)
