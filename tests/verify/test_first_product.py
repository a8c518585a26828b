"""A product whose noise is drawn by itself: as large as that of its operands, and only where nothing mixes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gpucheck.verify import sampled_bounds
from gpucheck.verify.first_product import FirstProduct
from gpucheck.verify.noise_model import Wide
from gpucheck.verify.normal_numbers import Normal

WEIGHT, BIAS = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).double() for shape in ((30, 20), (20,)))


def noise_of(compute: Any, x: Any, product: FirstProduct | None) -> Any:
    """The mean square of what noise does to each element, over forty times SAMPLES runs."""
    noise, squares = Normal(torch.Generator().manual_seed(0), stocked=True), 0.0
    with Wide(torch.float32):
        value = compute(x)
    for _ in range(40 * sampled_bounds.SAMPLES):
        with Wide(torch.float32, noise, product):
            squares += (compute(x.clone()) - value).square()
    return squares / 40 / sampled_bounds.SAMPLES


def watched(compute: Any, x: Any) -> FirstProduct:
    product = FirstProduct()
    with Wide(torch.float32, None, product):
        compute(x.clone())
    return product


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
    product = watched(compute, x)
    assert product.known
    ratio = noise_of(compute, x, product).mean() / noise_of(compute, x, None).mean()
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
        lambda x: x.to(torch.bfloat16) * 3,
        lambda x: torch.cat([x @ WEIGHT, x @ WEIGHT]),
        lambda x: torch.empty(25, 20).copy_(x @ WEIGHT).cumsum(0),
    ],
)
def test_what_mixes_elements_of_a_product_has_the_noise_of_its_operands(compute: Any) -> None:
    product = watched(compute, torch.randn(25, 30).double())
    assert not product.known


def test_an_operand_stored_with_less_precision_errs() -> None:
    """Each run rounds it anew, so that the product is not the same in all runs."""

    def compute(x: Any) -> Any:
        return x.to(torch.bfloat16).double() @ WEIGHT

    x = torch.randn(25, 30, generator=torch.Generator().manual_seed(2)).double()
    ratio = noise_of(compute, x, watched(compute, x)).mean() / noise_of(compute, x, None).mean()
    assert float(ratio.sqrt()) == pytest.approx(1, rel=0.05)
