"""Bounds drawn from rounding errors at random: wide enough for right results, and no wider than they need be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gpucheck.verify import bounds, sampled_bounds
from gpucheck.verify.noise_model import UnknownOperation, Wide
from gpucheck.verify.normal_numbers import Normal

Compute = Callable[[Any], Any]


def estimate_of(compute: Compute, x: Any) -> tuple[bounds.Estimate, int]:
    noise = Normal(torch.Generator().manual_seed(0))
    with Wide(x.dtype):
        value = compute(x.double())
    squares = torch.zeros_like(value)
    for _ in range(sampled_bounds.SAMPLES):
        with Wide(x.dtype, noise) as mode:
            run = compute(x.double())
        sampled_bounds.add_square(squares, value, run, finite=False)
    return sampled_bounds.sampled(value, squares, sampled_bounds.WIDTH), mode.longest


def used(result: Any, estimate: bounds.Estimate) -> float:
    """The largest share of its bound that a result takes, beyond its final rounding."""
    assert estimate.error is not None
    allowed = bounds.tolerance(result.dtype, estimate.value, estimate.error)
    return float(((result.double() - estimate.value).abs() / allowed).max())


def drawn(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x @ x.T,
        lambda x: torch.softmax(x, -1),
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: F.gelu(x),
        lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5),
        lambda x: x.cumsum(-1),
        lambda x: torch.logsumexp(x, -1),
        lambda x: F.conv1d(x[None], x[:8, None, :5].expand(8, len(x), 5)),
        lambda x: F.cross_entropy(x, torch.arange(len(x)) % x.shape[1]),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda x: torch.tanh(x).exp() + x.sigmoid() / 3,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_results_stay_within_and_lost_digits_do_not(compute: Compute, dtype: Any) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    x = drawn(40, 60).to(dtype)
    with sdpa_kernel(SDPBackend.MATH):
        estimate, _ = estimate_of(compute, x)
        assert used(compute(x), estimate) <= 1
        assert used(compute(x.double()).to(dtype), estimate) <= 1
        noisy = compute(x.double()) * (1 + (2.0**-11 if dtype == torch.float32 else 2.0**-3))
    assert used(noisy.to(dtype), estimate) > 1


@pytest.mark.parametrize("terms", [16, 200, 2000])
def test_a_single_product_gets_the_bound_of_a_product(terms: int) -> None:
    x, w = drawn(20, terms), drawn(terms, 20) * 0.5
    estimate, longest = estimate_of(lambda x: x @ w.double(), x)
    whole = bounds.product(*(bounds.Estimate(part.double(), torch.zeros_like(part).double()) for part in (x, w)))
    assert longest == terms and estimate.error is not None and whole.error is not None
    assert 0.3 < float((estimate.error / whole.error).median()) < 3


def test_what_only_moves_and_compares_makes_no_error() -> None:
    estimate, longest = estimate_of(lambda x: torch.relu(x).flip(0).max(-1).values, drawn(5, 9))
    assert estimate.error is None and longest == 1


def test_a_cast_within_the_code_is_a_rounding_of_its_own() -> None:
    x = drawn(30, 30)
    kept, _ = estimate_of(lambda x: x * 3, x)
    cast, _ = estimate_of(lambda x: x.to(torch.bfloat16).to(torch.float32) * 3, x)
    assert kept.error is not None and cast.error is not None
    assert float((cast.error / kept.error).median()) > 1000
    assert used(x.bfloat16().float() * 3, cast) <= 1 < used(x.bfloat16().float() * 3, kept)


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda x: torch.dropout(x, 0.5, True), "bernoulli_, which draws at random"),
        (lambda x: torch.linalg.inv(x), "linalg_inv_ex"),
    ],
)
def test_what_is_not_known_is_named(compute: Compute, words: str) -> None:
    with pytest.raises(UnknownOperation, match=words):
        estimate_of(compute, drawn(4, 4))


def test_code_that_names_narrow_dtypes_still_computes_wide() -> None:
    with Wide(torch.float32):
        made = torch.ones(3, dtype=torch.bfloat16) + torch.full((3,), 2.0**-30, dtype=torch.float16)
    assert made.dtype == torch.float64 and float(made[0]) == 1 + 2.0**-30
