"""What a screen sees of planted faults: as often as it says, where they are, and more than usual tests see."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gpucheck.diagnose.chance import count_needed, exact_interval, one_of, seen_with
from gpucheck.tools.screen import known_tiles
from gpucheck.tools.screen.datapaths import chosen
from tests.tools.screen import peers
from tests.tools.screen.test_tiles import SMALL, screened

SCREENS = 40


def test_planted_faults_are_seen_as_often_as_the_stated_power(launches: Any) -> None:
    """Screens so short that the stated power is a half: seen and missed both happen."""
    path, rate, groups = SMALL["integer"], 0.02, 9
    stated = seen_with(rate, groups * path.tiles)
    assert 0.4 < stated < 0.6
    device = launches.Device(3, [launches.Plant("integer", 1, 1, rate, seed=11)])
    known = known_tiles.known_digests(known_tiles.known_bits(path, 3))
    ready = device.prepare(path, [int(each) for each in known])
    seen = sum(1 in device.finish(device.launch(ready, groups))["details"] for _ in range(SCREENS))
    low, high = exact_interval(seen, SCREENS, 0.9999)
    assert low < stated < high


def test_usual_tests_are_blind_for_a_permanent_fault_and_for_finite_ones(launches: Any) -> None:
    path = next(path for path in chosen((9, 0), small=True) if path.name == "tensor bf16")
    seen = peers.table(launches, path, lambda made: made < 33, 1, seed=2)
    assert {name: counts[0] for name, counts in seen.items()} == dict.fromkeys(seen, 1)  # the screen sees each
    permanent = [name for name in seen if "of one element, in every tile" in name]
    assert len(permanent) == 2 and not any(seen[name][1] for name in permanent)
    assert seen["one bit of some element, in every tile"][1] == 1
    assert seen["a value that becomes NaN, in 1 of 5 tiles"][2] == 1


@pytest.mark.torture
def test_two_hundred_planted_faults_are_all_found_on_their_multiprocessor_alone(launches: Any) -> None:
    made = random.Random(5)
    paths, inside = list(SMALL.values()), 0
    for number in range(200):
        path = paths[number % len(paths)]
        chance = 1.0 if number % 9 == 0 else 10 ** made.uniform(-1.3, 0)
        bits = 1 << made.randrange(31)
        sm = made.randrange(launches.STAND_INS)
        plant = launches.Plant(path.name, sm, bits, chance, made.randrange(1 << 30))
        times = -(-count_needed(chance, 1 - 1e-7) // (2 * path.tiles))
        tally = screened(launches, path, times, plant)
        (wrong,) = tally.wrong_multiprocessors()
        assert wrong.number == sm, plant
        if path.exact:
            assert wrong.bits[0] == hex(bits), plant
        low, high = (one_of(share, path.tiles) for share in exact_interval(wrong.wrong, wrong.digests))
        inside += low <= chance <= high
    assert inside >= 180  # of 200 intervals of 95%
