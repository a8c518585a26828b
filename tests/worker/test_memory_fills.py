from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from gpucheck.diagnose.differing_calls import how_calls_differ
from gpucheck.worker.memory_fills import SURE, TELLING, depends_on_fill, fill_of, wants_another_pass

FILL, OTHER = 0xFF, 0x00


def fills(count: int) -> list[int]:
    return [fill_of(number) for number in range(count)]


def made_by(output: Callable[[int, int], str]) -> list[str]:
    """The digests of a case on a fault that gives ``output`` of the number of the call and the fill before it."""
    digests: list[str] = []
    while wants_another_pass(1, len(digests), digests, fills(len(digests))):
        digests.append(output(len(digests), fill_of(len(digests))))
    return digests


def test_fills_have_no_period() -> None:
    assert fills(8) == [FILL, OTHER, OTHER, FILL, OTHER, FILL, FILL, OTHER]
    for period in range(1, 9):
        assert any(fill_of(n) != fill_of(n + period) for n in range(SURE)), period


def test_passes_that_agree_cost_nothing_more() -> None:
    assert made_by(lambda call, fill: "same") == ["same"] * 2
    assert wants_another_pass(10, 9, ["a"] * 9, fills(9)) and not wants_another_pass(10, 10, ["a"] * 10, fills(10))


def test_outputs_that_follow_the_fill_are_made_until_it_is_sure() -> None:
    digests = made_by(lambda call, fill: str(fill))
    assert len(digests) == SURE and depends_on_fill(digests, fills(SURE))
    assert not depends_on_fill(digests[:TELLING], fills(TELLING)), "four calls may follow it by luck"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda call, fill: str(call % 2), "every second of 4 calls gave other bits"),
        (lambda call, fill: str((call + 1) % 2), "every second of 4 calls gave other bits"),
        (lambda call, fill: str(call > 0), "the first of 4 calls gave other bits than those after it"),
        (lambda call, fill: str(call), "4 different outputs in 4 calls: a b c d"),
        (lambda call, fill: str(call % 3 == 1), "2 different outputs in 4 calls: a b a a"),
    ],
)
def test_a_fault_of_some_calls_is_not_taken_for_the_fill(output: Callable[[int, int], str], words: str) -> None:
    digests = made_by(output)
    assert not depends_on_fill(digests, fills(len(digests)))
    assert words in how_calls_differ(digests)


def test_a_case_that_changes_in_the_middle_says_from_where_on() -> None:
    assert how_calls_differ(list("aaabb")) == "from call 4 of 5 on, the bits were different"


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.3, 0.5, 0.7, 0.95, 0.98])
def test_a_flake_is_taken_for_the_fill_in_one_of_a_hundred_draws_at_most(rate: float) -> None:
    coin = random.Random(int(1000 * rate))
    made = [made_by(lambda call, fill: str(coin.random() < rate)) for _ in range(4000)]
    assert sum(depends_on_fill(digests, fills(len(digests))) for digests in made) <= 40


def test_launches_at_once_share_a_fill() -> None:
    twice = [fill for fill in fills(4) for _ in range(2)]
    follow = ["a" if fill == FILL else "b" for fill in twice]
    assert depends_on_fill(follow, twice)
    assert not depends_on_fill(list("abbbbbaa"), twice), "launches in equal memory differ"
