from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gpucheck.checks.swiglu import Swiglu


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("params", [{}, {"alpha": 1.0, "limit": 2.5}])
def test_the_reference_is_the_formula_column_by_column(dtype: str, params: dict[str, Any]) -> None:
    check = Swiglu()
    case = check.spec.case({"m": 6, "n": 20, "dtype": dtype, **params}, "normal", 0)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    expected = check.reference(case, inputs)["y"]
    x, limit = inputs["x"].double(), float(case["limit"])
    for row in range(6):
        for column in range(10):
            gate = min(float(x[row, 2 * column]), limit)
            linear = max(-limit, min(float(x[row, 2 * column + 1]), limit))
            right = gate / (1 + math.exp(-float(case["alpha"]) * gate)) * (linear + 1)
            assert float(expected.estimate.value[row, column]) == pytest.approx(right, rel=1e-13, abs=1e-300)
    assert expected.dtype == inputs["x"].dtype and expected.estimate.value.shape == (6, 10)


def test_the_clamps_are_reached() -> None:
    check = Swiglu()
    case = check.spec.case({}, "normal", 0)
    x = check.inputs(case, torch.Generator().manual_seed(0))["x"].float()
    assert (x[:, 0::2] > 7).any() and (x[:, 1::2] > 7).any() and (x[:, 1::2] < -7).any()


@pytest.mark.parametrize(
    ("params", "words"),
    [({"n": 7}, "even n"), ({"m": 0}, "at least 1"), ({"n": 0}, "at least 2"), ({"limit": 0}, "limit")],
)
def test_impossible_parameters_have_a_reason(params: dict[str, Any], words: str) -> None:
    assert words in str(Swiglu().reason_against({**Swiglu.spec.defaults, **params}, "normal"))
