"""What an error looks like: planted into outputs, measured by the judge, put into words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from gpucheck.diagnose.error_pattern import error_pattern
from gpucheck.model.record import Outcome, Record
from gpucheck.verify.bounds import Estimate, product, round_to
from gpucheck.verify.expected import Axes, Expected
from gpucheck.verify.judge import judge

if TYPE_CHECKING:
    from torch import Tensor

M, N, K, EXPERTS = 48, 40, 96, 6
OWNERS = torch.arange(M)[:, None] % EXPERTS
AXES = {"y": Axes(("row", "column"), (16, 16), {"expert": OWNERS})}


def seen(spoil: Callable[[Tensor, Tensor, Tensor], Tensor], data: str) -> str:
    """The error pattern of what ``spoil(y, x, w)`` makes of a product."""
    generator = torch.Generator().manual_seed(3)
    if data == "exact":
        x, w = (torch.randint(1, 9, shape, generator=generator).double() for shape in ((M, K), (K, N)))
        x, w = x * (2 * torch.randint(0, 2, x.shape, generator=generator) - 1), w - 4.0
        estimate = product(Estimate(x, None), Estimate(w, None))
    else:
        x, w = (torch.randn(shape, generator=generator).double() for shape in ((M, K), (K, N)))
        estimate = product(Estimate(x, torch.zeros_like(x)), Estimate(w, torch.zeros_like(w)))
    right = round_to(torch.float32, estimate.value).float()
    output = spoil(right.clone(), x, w).float()
    found = judge({"y": output}, {"y": Expected(estimate, torch.float32)}, AXES)
    return error_pattern(Record(0, "c", 0, Outcome.MISMATCH, mismatches=found.mismatches))


def fill(rows: Any, value: float) -> Callable[..., Tensor]:
    def spoil(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
        y[rows] = value
        return y

    return spoil


def unwritten(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
    y.view(torch.int32)[16:32] = -1
    return y


def bit(position: int) -> Callable[..., Tensor]:
    def spoil(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
        y.view(torch.int32)[3, 5] ^= 1 << position
        return y

    return spoil


def flips(y: Tensor, elements: int, position: int) -> Tensor:
    """One bit of each of some elements, which was set in some and not in others."""
    y.view(torch.int32).flatten()[7 :: y.numel() // elements] ^= 1 << position
    return y


def experts_swapped(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
    other = x @ w.flip(1).roll(7, 0)
    wrong = torch.isin(OWNERS[:, 0], torch.tensor([1, 4]))
    y[wrong] = other[wrong].float()
    return y


def gated(y: Tensor) -> Tensor:
    """Each row multiplied by a factor of its own."""
    return y * torch.linspace(0.3, 1.7, M)[:, None]


def truncated(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return (y.view(torch.int32) & -4096).view(torch.float32)


def to_bf16(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return y.bfloat16().float()


@pytest.mark.parametrize(
    ("spoil", "data", "words"),
    [
        (unwritten, "exact", "output not written"),
        (unwritten, "normal", "output not written"),
        (fill(slice(2, 5), float("nan")), "exact", "NaN"),
        (bit(0), "exact", "one bit flipped"),
        (bit(14), "exact", "one bit flipped"),
        (bit(30), "exact", "one bit flipped"),
        (lambda y, x, w: flips(y, 40, 13), "exact", "one bit flipped"),
        (lambda y, x, w: -y, "exact", "wrong sign"),
        (lambda y, x, w: -y, "normal", "wrong sign"),
        (lambda y, x, w: y.abs(), "exact", "wrong sign"),
        (lambda y, x, w: y + 3, "exact", "off by the same number"),
        (fill(slice(2, 5), float("inf")), "exact", "Inf"),
        (lambda y, x, w: y.where(y.frexp().mantissa.abs() != 0.5, 0.0), "exact", "zero instead of the result"),
        (lambda y, x, w: y.roll(1, 0), "exact", "rows permuted"),
        (lambda y, x, w: y.roll(1, 0), "normal", "rows permuted"),
        (lambda y, x, w: y[torch.arange(M).flip(0)], "exact", "rows permuted"),
        (experts_swapped, "exact", "wrong expert"),
        (experts_swapped, "normal", "wrong expert"),
        (lambda y, x, w: y * 2, "exact", "wrong scale"),
        (lambda y, x, w: y * 0.5, "normal", "wrong scale"),
        (fill(slice(7, 30), 0.0), "exact", "zero instead of the result"),
        (fill(OWNERS[:, 0] == 2, 0.0), "exact", "wrong expert"),
        (lambda y, x, w: x @ w.roll(11, 0).flip(1), "normal", "wrong operand"),
        (lambda y, x, w: x[:, :64] @ w[:64], "normal", "part of each sum missing or counted twice"),
        (lambda y, x, w: x[:, :64] @ w[:64], "exact", "part of each sum missing or counted twice"),
        (lambda y, x, w: x @ w + x[:, 64:] @ w[64:], "normal", "part of each sum missing or counted twice"),
        (lambda y, x, w: x @ w + x[:, 64:] @ w[64:], "exact", "part of each sum missing or counted twice"),
        (lambda y, x, w: gated(y), "normal", "wrong output"),  # resembles the right one, and lacks no terms
        (lambda y, x, w: gated(y), "exact", "wrong output"),
        (lambda y, x, w: y * torch.sigmoid(0.2 * y) * 2, "normal", "wrong output"),
        (lambda y, x, w: y + 0.01 + 0.1 * torch.rand(y.shape), "normal", "wrong output"),  # no digits lost: added
        (truncated, "normal", "rounded toward zero"),
        (to_bf16, "normal", "lower precision than asked"),
        (lambda y, x, w: (x.half() @ w.half()).float(), "normal", "lower precision than asked"),
        (fill((slice(0, 3), slice(0, 4)), 5.5), "exact", "wrong output"),
    ],
)
def test_nature_of_a_planted_error(spoil: Callable[..., Tensor], data: str, words: str) -> None:
    assert seen(spoil, data) == words


def test_a_record_without_mismatch_has_none() -> None:
    assert error_pattern(Record(0, "c", 0, Outcome.PASS)) == ""


def of_integers(expected: Any, got: Any, dtype: torch.dtype) -> str:
    """The error pattern of an output of integers; both are given as something that torch makes a tensor of."""
    value, output = torch.as_tensor(expected).double(), torch.as_tensor(got).to(dtype)
    axes = {"y": Axes(("token", "slot")[: value.ndim], (0, 0)[: value.ndim])}
    found = judge({"y": output}, {"y": Expected(Estimate(value, None), dtype)}, axes)
    return error_pattern(Record(0, "c", 0, Outcome.MISMATCH, mismatches=found.mismatches))


FLAGS = torch.ones(12, 4)
IDS = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(n))[:4] for n in range(24)])
PLACES = torch.arange(0, 480, 2)
COUNTS = torch.tensor([3, 0, 1, 5, 2, 8, 0, 4])


def changed(tensor: Tensor, where: Any, value: Any) -> Tensor:
    copy = tensor.clone()
    copy[where] = value
    return copy


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        (FLAGS, changed(FLAGS, slice(6, 8), 0), "0 instead of 1"),
        (FLAGS, changed(FLAGS, (3, 1), 0), "0 instead of 1"),
        (FLAGS, 0 * FLAGS, "0 instead of 1"),
        (0 * FLAGS, changed(0 * FLAGS, (3, 1), 1), "1 instead of 0"),
        (FLAGS.cumsum(0) % 2, changed(FLAGS.cumsum(0) % 2, slice(2, 5), 1), "1 instead of 0"),
        (FLAGS.cumsum(0) % 2, FLAGS.cumsum(0) % 2 == 0, "0 and 1 exchanged"),
    ],
)
def test_a_flag_that_is_wrong_is_no_flipped_bit(expected: Tensor, got: Tensor, words: str, dtype: torch.dtype) -> None:
    assert of_integers(expected, got, dtype) == words


@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        (COUNTS, changed(COUNTS, 4, 3), "off by one"),  # 2 and 3 differ in a bit
        (COUNTS, COUNTS + 1, "off by one"),
        (IDS, IDS + (IDS % 2 == 0), "off by one"),
        (IDS, changed(IDS, (5, 2), IDS[5, 2] - 1), "off by one"),
        (IDS, IDS + 32, "off by the same number"),
        (PLACES, PLACES + 8, "off by the same number"),
        (IDS, changed(IDS, 9, IDS[3]), "rows permuted"),
        (IDS, IDS.roll(1, 0), "rows permuted"),
        (PLACES**2, (PLACES**2).roll(3), "rows permuted"),
        (IDS, IDS.flip(1), "values in another order"),
        (IDS, changed(IDS, slice(3, 6), 0), "zero instead of the result"),
        (COUNTS, changed(COUNTS, 5, 0), "zero instead of the result"),  # 8 and 0 differ in a bit
        (IDS, changed(IDS, (5, 2), IDS[5, 2] ^ 1 << 20), "one bit flipped"),  # no id is that large
        (IDS, changed(IDS, (5, 2), IDS[5, 2] ^ 4), "wrong output"),  # another expert's id
        (COUNTS, changed(COUNTS, 3, 7), "wrong output"),
        (COUNTS, COUNTS * 4, "off by one factor"),
        (PLACES, (PLACES * 1.02).round(), "wrong output"),  # no lost digits
        (IDS, changed(IDS, slice(7, 9), 255), "wrong output"),
    ],
)
def test_integers_are_told_by_their_values(expected: Tensor, got: Tensor, words: str) -> None:
    assert of_integers(expected, got, torch.int32) == words


def test_what_stands_in_place_of_zero_is_no_factor() -> None:
    right = torch.eye(16)
    found = judge({"y": right.roll(1, 0)}, {"y": Expected(Estimate(right.double(), None), torch.float32)}, {})
    assert error_pattern(Record(0, "c", 0, Outcome.MISMATCH, mismatches=found.mismatches)) == "wrong output"


def test_rows_of_few_different_values_are_not_found_elsewhere_by_chance() -> None:
    few = torch.arange(48).reshape(24, 2) % 3
    assert of_integers(few, changed(few, (5, 0), (few[5, 0] + 2) % 3), torch.int32) != "rows permuted"
