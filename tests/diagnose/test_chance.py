"""How sure a clean screen is, and between what a rate lies: against sums that are written out."""

from __future__ import annotations

import math

import pytest

from gpucheck.diagnose.chance import count_needed, exact_interval, one_of, rate_seen, seen_with


def at_least(hits: int, runs: int, rate: float) -> float:
    """The chance of so many hits or more, term by term."""
    logs = [
        math.lgamma(runs + 1)
        - math.lgamma(k + 1)
        - math.lgamma(runs - k + 1)
        + k * math.log(rate)
        + (runs - k) * math.log1p(-rate)
        for k in range(hits, runs + 1)
    ]
    return math.fsum(map(math.exp, logs))


@pytest.mark.parametrize("rate", [0.5, 1e-3, 1e-6, 1e-9])
def test_so_many_tiles_as_a_rate_needs_show_it_with_99_percent_and_one_fewer_do_not(rate: float) -> None:
    needed = count_needed(rate)
    assert seen_with(rate, needed) >= 0.99 > seen_with(rate, needed - 1)
    assert rate_seen(needed) == pytest.approx(rate, rel=0.5 / needed + 1e-9) or rate > 0.1


def test_no_tile_shows_nothing() -> None:
    assert (seen_with(0.5, 0), seen_with(1.0, 0), seen_with(1.0, 1)) == (0.0, 0.0, 1.0)
    assert rate_seen(0) == 1.0
    assert count_needed(1.0) == 1


@pytest.mark.parametrize("hits, runs", [(1, 10), (5, 10), (9, 10), (1, 4000), (3, 4000), (3990, 4000)])
def test_the_exact_interval_leaves_a_fortieth_on_each_side(hits: int, runs: int) -> None:
    low, high = exact_interval(hits, runs)
    assert at_least(hits, runs, low) == pytest.approx(0.025, rel=1e-6)
    assert 1 - at_least(hits + 1, runs, high) == pytest.approx(0.025, rel=1e-6)


def test_the_exact_interval_at_its_ends() -> None:
    assert exact_interval(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert exact_interval(10, 10) == (pytest.approx(0.025**0.1), 1.0)
    low, high = exact_interval(1, 10**9)  # Garwood's interval of one event: 0.0253 to 5.57
    assert (low * 1e9, high * 1e9) == (pytest.approx(0.02532, rel=1e-3), pytest.approx(5.5716, rel=1e-3))


def test_the_rate_of_a_tile_from_that_of_its_group() -> None:
    assert one_of(1 - (1 - 1e-4) ** 512, 512) == pytest.approx(1e-4)
    assert one_of(1.0, 512) == 1.0 and one_of(0.0, 512) == 0.0
