from __future__ import annotations

import random

import pytest

from gpucheck.tools.bisect.repeats import LIMIT, chance_missed, enough, estimate


@pytest.mark.parametrize(
    ("failed", "runs", "passes"), [(5, 5, 2), (10, 10, 1), (9, 10, 4), (5, 10, 10), (3, 10, 21), (1, 10, 95)]
)
def test_passes_by_rate(failed: int, runs: int, passes: int) -> None:
    rate = estimate(failed, runs)
    assert rate.passes == passes
    assert rate.missed == chance_missed(failed, runs, passes) < LIMIT <= chance_missed(failed, runs, passes - 1)


@pytest.mark.parametrize(("failed", "runs"), [(0, 5), (6, 5)])
def test_a_fault_that_was_not_seen_has_no_rate(failed: int, runs: int) -> None:
    with pytest.raises(ValueError, match="shown"):
        estimate(failed, runs)


def test_chances_by_hand() -> None:
    assert chance_missed(3, 10, 1) == pytest.approx(8 / 12)  # rule of succession
    assert chance_missed(3, 10, 2) == pytest.approx(8 / 12 * 9 / 13)
    assert chance_missed(5, 5, 1) == pytest.approx((1 / 7) * (1 / 7))  # it may not show always, and then passes
    assert chance_missed(5, 5, 0) == pytest.approx(1 / 7)


@pytest.mark.parametrize(
    ("failed", "runs", "wanted"),
    [
        (4, 4, False),
        (5, 5, True),
        (5, 6, False),
        (0, 9, False),
        (0, 10, True),
        (3, 10, True),
        (1, 10, False),  # 95 passes of each candidate, or some more runs of the bad end
        (3, 14, True),
        (1, 59, False),
        (1, 60, True),
    ],
)
def test_when_the_bad_end_has_been_run_often_enough(failed: int, runs: int, wanted: bool) -> None:
    assert enough(failed, runs) is wanted


def test_the_chance_holds_for_faults_of_any_rate() -> None:
    """Faults drawn as the prior says, measured as a search does: a bad candidate passes in under 1% of cases."""
    chance = random.Random(1)
    missed = trials = 0
    while trials < 20_000:
        rate = 1.0 if chance.random() < 0.5 else chance.random()
        failed = runs = 0
        while not enough(failed, runs):
            failed, runs = failed + (chance.random() < rate), runs + 1
        if not failed:
            continue  # the bad end is refused
        trials += 1
        missed += chance.random() < (1 - rate) ** estimate(failed, runs).passes
    assert 0 < missed / trials < LIMIT
