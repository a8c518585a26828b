"""KernelBench's rule: ``allclose`` with one number, by the dtype of the output."""

from __future__ import annotations

import pytest
import torch

from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Expected
from gpucheck.verify.published_rules import kernelbench

VALUE = torch.linspace(-3, 3, 1001, dtype=torch.float64)


def expected(dtype: torch.dtype) -> dict[str, Expected]:
    return {"out": Expected(Estimate(VALUE, None), dtype)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 1e-2)])
def test_it_says_what_allclose_says_on_either_side_of_its_number(dtype: torch.dtype, tolerance: float) -> None:
    right = VALUE.to(dtype)
    for factor in (0.5, 0.9, 1.6, 3.0):
        output = (right.double() + factor * tolerance * (1 + right.double().abs())).to(dtype)
        told = kernelbench({"out": output}, expected(dtype))
        assert told["close"] == torch.allclose(right, output, atol=tolerance, rtol=tolerance)
        assert told["tolerance"] == tolerance and 0 < told["avg_difference"] < told["max_difference"]


def test_nan_another_shape_or_dtype_and_a_missing_output_are_not_close() -> None:
    right = VALUE.float()
    nan = right.clone()
    nan[3] = torch.nan
    assert kernelbench({"out": right}, expected(torch.float32))["close"]
    for outputs in ({"out": nan}, {"out": right[1:]}, {"out": right.half()}, {}):
        assert not kernelbench(outputs, expected(torch.float32))["close"]


def test_infinities_of_one_sign_and_whole_numbers_are_close_to_themselves() -> None:
    value = torch.tensor([torch.inf, -torch.inf, 4.0], dtype=torch.float64)
    assert kernelbench({"out": value.float()}, {"out": Expected(Estimate(value, None), torch.float32)})["close"]
    assert not kernelbench({"out": -value.float()}, {"out": Expected(Estimate(value, None), torch.float32)})["close"]
    places = Expected(Estimate(torch.arange(5).double(), None), torch.int64)
    assert kernelbench({"out": torch.arange(5)}, {"out": places})["close"]
    assert not kernelbench({"out": torch.arange(5) + 1}, {"out": places})["close"]
