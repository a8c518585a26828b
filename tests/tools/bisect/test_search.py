"""The search on every small history there is: change anywhere, any candidates that cannot be told."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator, Sequence

import pytest

from gpucheck.tools.bisect.search import Found, Side, search

LARGEST = 9


class History:
    """Candidates up to ``change`` are before it; those in ``silent`` cannot be told."""

    def __init__(self, count: int, change: int, silent: Collection[int] = ()) -> None:
        self.count, self.change, self.silent = count, change, silent
        self.asked: list[int] = []

    def ask(self, place: int) -> Side:
        self.asked.append(place)
        if place in self.silent:
            return Side.UNKNOWN
        return Side.AFTER if place >= self.change else Side.BEFORE

    def search(self) -> Found:
        return search(range(self.count), self.ask)


def histories() -> Iterator[History]:
    for count in range(2, LARGEST + 1):
        for change in range(1, count):
            for size in range(count - 1):
                for silent in itertools.combinations(range(1, count - 1), size):
                    yield History(count, change, silent)


def test_every_small_history() -> None:
    tried = 0
    for history in histories():
        found = history.search()
        between = range(found.before + 1, found.after)
        assert found.before < history.change <= found.after
        assert found.sides[found.before] is Side.BEFORE and found.sides[found.after] is Side.AFTER
        assert all(found.sides[place] is Side.UNKNOWN for place in between), "only skipped ones are left open"
        assert set(between) <= set(history.silent)
        assert found.exact == (not between)
        assert found.relapses == []
        assert len(set(history.asked)) == len(history.asked) and not {0, history.count - 1} & set(history.asked)
        met = len(set(history.asked) & set(history.silent))
        assert len(history.asked) - met <= math.ceil(math.log2(history.count - 1)) + met
        tried += 1
    assert tried == sum((count - 1) * 2 ** (count - 2) for count in range(2, LARGEST + 1))


@pytest.mark.parametrize("count", [2, 3, 10, 33, 34, 1000])
def test_no_more_questions_than_needed(count: int) -> None:
    for change in range(1, count, 1 + count // 50):
        history = History(count, change)
        found = history.search()
        assert (found.before, found.after) == (change - 1, change)
        assert len(history.asked) <= math.ceil(math.log2(count - 1))


def test_a_block_that_cannot_be_told_is_jumped_over() -> None:
    """As a commit breaks the build and a later one fixes it: 50 in a row cost few questions."""
    counts = []
    for seed in range(100):
        chance = random.Random(seed)
        start, change = chance.randrange(100, 800), chance.randrange(1, 1000)
        block = range(start, start + 50)
        if change in block or change == block.stop:
            continue
        history = History(1000, change, block)
        assert history.search().exact
        counts.append(len(history.asked))
    assert len(counts) > 80 and sorted(counts)[len(counts) // 2] <= 11


def by_content(contents: str) -> tuple[Found, list[str]]:
    """Searches a history of equal letters; capital letters lie after the change, ``?`` and ``!`` cannot be told."""
    asked = []

    def ask(place: int) -> Side:
        asked.append(contents[place])
        return Side.UNKNOWN if contents[place] in "?!" else Side.AFTER if contents[place].isupper() else Side.BEFORE

    return search(contents, ask), asked


def test_equal_candidates_are_asked_once_and_known_everywhere() -> None:
    found, asked = by_content("aabbccXXYYYZZ")
    assert len(set(asked)) == len(asked)
    assert (found.before, found.after) == (5, 6)
    found, asked = by_content("a??b??C!!D")
    assert asked.count("?") <= 1 and asked.count("!") <= 1


def test_what_comes_back_is_a_relapse() -> None:
    """A content that returns is known to be as before, although it lies behind the change."""
    found, asked = by_content("abXcXYZ")
    assert asked == ["c", "X", "b"]
    assert (found.before, found.after, found.exact) == (1, 2, True)
    assert found.relapses == [(2, 3)]


def test_of_several_changes_the_first_known_one_is_narrowed_down() -> None:
    for contents in ("abXbXcYc" + "Z", "aXaYaZaW", "abcXYabcXYZ"):
        found, _ = by_content(contents)
        assert contents[found.before].islower() and contents[found.after].isupper() and found.exact
        first = next(place for place, letter in enumerate(contents) if letter.isupper())
        assert found.after == first or not any(found.sides[place] is Side.AFTER for place in range(found.after))


@pytest.mark.parametrize("keys", [[], ["a"], ["a", "a"], ["a", "b", "a"]])
def test_ends_that_do_not_differ(keys: Sequence[str]) -> None:
    with pytest.raises(ValueError, match="differ"):
        search(keys, lambda _: Side.BEFORE)
