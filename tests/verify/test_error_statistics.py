"""Numbers that tell kinds of error apart."""

from __future__ import annotations

import pytest
import torch

from gpucheck.verify.error_statistics import Character, character


@pytest.fixture
def expected() -> torch.Tensor:
    return torch.randn((30, 24), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def everywhere(got: torch.Tensor, expected: torch.Tensor) -> Character:
    return character(got, expected, got != expected)


def test_a_factor_is_found_whatever_its_sign(expected: torch.Tensor) -> None:
    for factor in (0.5, -3.0):
        found = everywhere(expected * factor, expected)
        assert found.ratio == pytest.approx(factor) and found.correlation == pytest.approx(1 if factor > 0 else -1)
        assert found.relative == pytest.approx(abs(factor - 1))
    assert everywhere(expected + 1, expected).ratio is None


def test_rows_that_moved_are_counted_with_their_distance(expected: torch.Tensor) -> None:
    found = everywhere(expected.roll(2, 0), expected)
    assert (found.moved, found.sampled) == (30, 30) and found.shift == -2
    swapped = expected.clone()
    swapped[[4, 9]] = expected[[9, 4]]
    found = everywhere(swapped, expected)
    assert (found.moved, found.sampled, found.shift) == (2, 2, None), "one went up, one down"
    assert everywhere(expected + 3, expected).moved == 0


def test_rows_of_zeros_did_not_move(expected: torch.Tensor) -> None:
    expected[7] = 0
    got = expected.clone()
    got[3] = 0
    assert everywhere(got, expected).moved == 0


def test_errors_towards_zero_lean_inward(expected: torch.Tensor) -> None:
    assert everywhere(expected * 0.99, expected).inward == -1
    assert everywhere(expected * 1.01, expected).inward == 1
    assert abs(everywhere(expected + 1e-6, expected).inward) < 0.5


def test_what_cannot_be_told_is_none() -> None:
    expected = torch.zeros((2, 3), dtype=torch.float64)
    found = everywhere(torch.full((2, 3), torch.nan, dtype=torch.float64), expected)
    assert found == Character(0.0, None, None, None, 0, 0, None)
    found = everywhere(expected + 1, expected)
    assert (found.correlation, found.relative, found.ratio) == (None, None, None)
    flat = torch.zeros(40, dtype=torch.float64)
    assert everywhere(flat + 1, flat).sampled == 0, "an output of one axis has no rows"


def test_wrong_elements_alone_count(expected: torch.Tensor) -> None:
    got = expected.clone()
    got[:10] *= 2
    assert everywhere(got, expected).ratio == pytest.approx(2)
