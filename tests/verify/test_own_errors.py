"""Errors that stay with their element: as large as those that are drawn, and only where nothing mixes elements."""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gpucheck.verify import bounds, sampled_bounds
from gpucheck.verify.noise_model import Wide
from gpucheck.verify.normal_numbers import Normal
from gpucheck.verify.own_errors import OwnErrors, _roots

WEIGHT, BIAS = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).double() for shape in ((30, 20), (20,)))


def noise_of(compute: Any, x: Any, watcher: OwnErrors | None, times: int = 40, precision: str = "fp32") -> Any:
    """The mean square of what noise does to each element, over so many times SAMPLES runs."""
    noise, squares = Normal(torch.Generator().manual_seed(0), stocked=True), 0.0
    with Wide(torch.float32):
        value = compute(x)
    for _ in range(times):
        own = copy(watcher)
        for _ in iter(own.begins, False) if own else range(sampled_bounds.SAMPLES):
            with Wide(torch.float32, noise, own, precision=precision):
                squares += (compute(x.clone()) - value).square() * (own.weight if own else 1)
    return squares / times / sampled_bounds.SAMPLES


def watched(compute: Any, x: Any, precision: str = "fp32") -> OwnErrors:
    watcher = OwnErrors()
    with Wide(torch.float32, None, watcher, precision=precision):
        compute(x.clone())
    return watcher


def leaky_by_hand(y: Any) -> Any:
    return torch.where(y > 0, y, y * 0.1)


def gelu_by_hand(x: Any) -> Any:
    return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.0447 * torch.pow(x, 3))))


@pytest.mark.parametrize(
    ("compute", "precision"),
    [
        (lambda x: F.gelu(x), "fp32"),
        (lambda x: x * 2 + x, "fp32"),
        (lambda x: F.linear(x, WEIGHT.T, BIAS) * 0.5 + BIAS, "fp32"),
        (lambda x: F.linear(x, WEIGHT.T, BIAS).mul_(2).tanh(), "tf32"),
        (lambda x: F.conv2d(x[:, None, None], WEIGHT[:4, None, None, :5], BIAS[:4]).mul_(3), "tf32"),
        (lambda x: x.to(torch.bfloat16) * 3, "fp32"),
        (lambda x: leaky_by_hand(x @ WEIGHT), "fp32"),
        (lambda x: gelu_by_hand(x @ WEIGHT), "fp32"),
    ],
)
def test_where_elements_do_not_meet_the_mean_square_is_that_of_ever_so_many_runs(compute: Any, precision: str) -> None:
    """Of one set of runs, and for each element by itself: drawn runs miss it by a fifth and more."""
    x = torch.randn(25, 30, generator=torch.Generator().manual_seed(2)).double()
    watcher = watched(compute, x, precision)
    assert watcher.by_element
    many, exact = noise_of(compute, x, None, 30, precision), noise_of(compute, x, watcher, 1, precision)
    ratio = (exact / many).sqrt()[many > 0]
    assert float(ratio.min()) > 0.85 and float(ratio.max()) < 1.15 and torch.equal(many > 0, exact > 0)
    drawn = (noise_of(compute, x, None, 1, precision) / many).sqrt()[many > 0]
    assert float(drawn.min()) < 0.6 and float(drawn.max()) > 1.4


def test_what_errors_may_take_past_a_bend_has_a_bound() -> None:
    """A right result may lie on its other side: drawn runs do not reach it at each element."""
    x = torch.randn(400, 30, generator=torch.Generator().manual_seed(2)).double()
    deviation = noise_of(lambda x: x @ WEIGHT, x, watched(lambda x: x @ WEIGHT, x), 1).sqrt()
    before = x @ WEIGHT + 4 * deviation

    def compute(x: Any) -> Any:
        return (x @ WEIGHT - before).relu()

    assert bool((noise_of(compute, x, watched(compute, x), 1) > 0).all())
    assert not bool((noise_of(compute, x, None, 1) > 0).all())


def test_runs_that_tell_nothing_are_not_made() -> None:
    x = torch.randn(25, 30).double()
    for compute, runs in (
        (lambda x: x.relu(), 0),
        (lambda x: x * 3, 2),
        (lambda x: F.gelu(x), 6),
        (lambda x: F.linear(x, WEIGHT.T, BIAS).relu(), 6),
        (lambda x: gelu_by_hand(x), 22),
        (
            lambda x: gelu_by_hand(gelu_by_hand(x)),
            sampled_bounds.SAMPLES,
        ),  # more places err than have runs of their own
        (lambda x: torch.softmax(x, -1), sampled_bounds.SAMPLES),
    ):
        watcher, made = watched(compute, x), 0
        while watcher.begins():
            with Wide(torch.float32, Normal(torch.Generator()), watcher):
                compute(x.clone())
            made += 1
        assert made == runs


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x @ WEIGHT,
        lambda x: F.gelu(F.linear(x, WEIGHT.T, BIAS)) * 2 + BIAS,
        lambda x: F.silu((x.relu() @ WEIGHT).relu_()),
        lambda x: torch.bmm(x[None], WEIGHT[None]).view(-1, 20).to(torch.bfloat16),
        lambda x: F.conv1d(x[:, None], WEIGHT[:4, None, :5], BIAS[:4], stride=2),
        lambda x: torch.mv(x, WEIGHT[:, 0]),
        lambda x: (x @ WEIGHT) * (x @ WEIGHT).sigmoid(),
    ],
)
def test_drawn_by_itself_the_noise_of_a_product_is_as_large(compute: Any) -> None:
    x = torch.randn(25, 30, generator=torch.Generator().manual_seed(2)).double()
    watcher = watched(compute, x)
    assert watcher.known
    ratio = noise_of(compute, x, watcher).mean() / noise_of(compute, x, None).mean()
    assert float(ratio.sqrt()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.softmax(x @ WEIGHT, -1),
        lambda x: (x @ WEIGHT).sum(),
        lambda x: x @ WEIGHT @ WEIGHT.T,
        lambda x: F.layer_norm(x @ WEIGHT, (20,)),
        lambda x: (x @ WEIGHT)[:, :10] * (x @ WEIGHT)[:, 10:],
        lambda x: (x @ WEIGHT).view(1, -1) + (x @ WEIGHT).view(-1, 1),
        lambda x: (x @ WEIGHT).flip(0) + x @ WEIGHT,
        lambda x: (x * 3) @ WEIGHT,  # an operand that errs
        lambda x: torch.cat([x @ WEIGHT, x @ WEIGHT]),
        lambda x: torch.empty(25, 20).copy_(x @ WEIGHT).cumsum(0),
    ],
)
def test_what_mixes_elements_of_a_product_has_the_noise_of_its_operands(compute: Any) -> None:
    watcher = watched(compute, torch.randn(25, 30).double())
    assert not watcher.known and not watcher.by_element


def test_an_operand_stored_with_less_precision_errs() -> None:
    """Each run rounds it anew, so that the product is not the same in all runs."""

    def compute(x: Any) -> Any:
        return x.to(torch.bfloat16).double() @ WEIGHT

    x = torch.randn(25, 30, generator=torch.Generator().manual_seed(2)).double()
    ratio = noise_of(compute, x, watched(compute, x)).mean() / noise_of(compute, x, None).mean()
    assert float(ratio.sqrt()) == pytest.approx(1, rel=0.05)


def test_an_infinity_is_not_lost_in_errors_of_float32() -> None:
    """As a GPU draws them, where sums say that all is finite."""
    noise = Normal(torch.Generator().manual_seed(0))
    noise._narrow = True
    x = torch.randn(25, 30, generator=torch.Generator().manual_seed(2)).double()
    masked = x.masked_fill(x < -1, float("-inf"))
    for given in (x, masked):
        watcher = OwnErrors(sums=True)
        with Wide(torch.float32, None, watcher):
            value = torch.softmax(given, -1)
        assert not watcher.by_element
        assert [watcher.finite, watcher.finite] == [given is x] * 2
        for _ in iter(watcher.begins, False):
            with Wide(torch.float32, noise, watcher):
                run = torch.softmax(given, -1)
            assert torch.allclose(run, value) and not torch.equal(run, value)


@pytest.mark.parametrize(
    ("operation", "shapes", "further"),
    [
        (torch.ops.aten.addmm.default, ((20,), (25, 30), (30, 20)), ()),
        (torch.ops.aten.baddbmm.default, ((2, 25, 20), (2, 25, 30), (2, 30, 20)), ()),
        (
            torch.ops.aten.convolution.default,
            ((2, 3, 8, 8), (4, 3, 3, 3), (4,)),
            ([1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        ),
    ],
    ids=["addmm", "baddbmm", "convolution"],
)
def test_the_roots_of_a_product_are_made_where_its_operands_are(
    monkeypatch: pytest.MonkeyPatch, operation: Any, shapes: Any, further: Any
) -> None:
    """On a GPU a zero of the CPU in place of the bias raised, and every product with a bias was drawn anew each run."""
    monkeypatch.setattr(bounds, "holds_squares", lambda *operands: torch.float32)
    given = [torch.zeros(shape, dtype=torch.float64, device="meta") for shape in shapes]
    roots = _roots(operation, [*given, *further], {})
    assert roots is not None and roots.device.type == "meta"


@pytest.mark.parametrize("error", [3.0, 5.0, 6.7])
def test_an_output_of_many_elements_passes_drawn_bounds_by_chance_about_as_seldom_as_one_of_few(error: float) -> None:
    """For an error of so many deviations: a mean square of drawn numbers follows a chi-squared distribution."""
    few, half = sampled_bounds.FEW, sampled_bounds.SAMPLES / 2

    def passed(elements: int) -> float:
        """How many elements pass, of so many."""
        share = (error / sampled_bounds.width(elements)) ** 2
        return elements * float(torch.special.gammainc(*map(torch.tensor, (half, half * share))))

    assert sampled_bounds.width(few // 2) == sampled_bounds.width(few) == sampled_bounds.WIDTH
    assert passed(few) < passed(1000 * few) < 4 * passed(few)
