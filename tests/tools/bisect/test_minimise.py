"""ddmin on every small set of needed elements, alone and together, and with parts that cannot be told."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from gpucheck.tools.bisect.minimise import Part, minimise


class Asked:
    """Counts what is asked."""

    def __init__(self, works: Callable[[set[int]], bool]) -> None:
        self._works = works
        self.parts: list[Part] = []

    def __call__(self, part: Part) -> bool:
        assert list(part) == sorted(set(part)), "a part keeps the order of the whole"
        self.parts.append(part)
        return self._works(set(part))


def subsets(count: int) -> list[set[int]]:
    return [set(part) for size in range(1, count + 1) for part in itertools.combinations(range(count), size)]


@pytest.mark.parametrize("count", range(1, 8))
def test_exactly_what_is_needed_is_left(count: int) -> None:
    for needed in subsets(count):
        asked = Asked(lambda part, needed=needed: needed <= part)  # type: ignore[misc]
        assert set(minimise(count, asked)) == needed
        assert len(set(asked.parts)) == len(asked.parts), "no part is asked twice"


def test_one_of_six_takes_few_questions() -> None:
    counts = []
    for needed in range(6):
        asked = Asked(lambda part, needed=needed: needed in part)  # type: ignore[misc]
        assert minimise(6, asked) == (needed,)
        counts.append(len(asked.parts))
    assert max(counts) <= 6


def test_nothing_can_be_taken_from_what_is_left() -> None:
    """Any rule at all, also one under which more patches work worse."""
    for seed in range(300):
        chance = random.Random(seed)
        count = chance.randrange(1, 7)
        working = {frozenset(part) for part in subsets(count) if chance.random() < 0.4} | {frozenset(range(count))}
        left = minimise(count, lambda part, working=working: frozenset(part) in working)  # type: ignore[misc]
        assert frozenset(left) in working
        for element in left:
            assert len(left) == 1 or frozenset(left) - {element} not in working


def test_parts_that_cannot_be_told_do_not_mislead() -> None:
    """Patch 3 changes what patch 1 made, so it applies only behind it; patch 4 is the one that fixes."""
    asked = Asked(lambda part: 4 in part and not (3 in part and 1 not in part))
    assert minimise(6, asked) == (4,)
    asked = Asked(lambda part: {1, 3} <= part)
    assert minimise(6, asked) == (1, 3)


def test_a_series_of_one() -> None:
    def never(part: Part) -> bool:
        raise AssertionError("the whole is known to work")

    assert minimise(1, never) == (0,)
