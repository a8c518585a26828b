from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks import codec
from gpucheck.checks.mxfp import FORMATS, Mxfp
from gpucheck.model.case import Case
from gpucheck.verify.expected import Expected

SHAPE = {"batch": 2, "rows": 64, "columns": 34}


def make(data: str, **params: Any) -> tuple[Case, dict[str, Tensor], dict[str, Expected]]:
    check = Mxfp()
    case = check.spec.case({**SHAPE, **params}, data, 0)
    assert check.reason_against(case.params, data) is None
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    return case, inputs, check.reference(case, inputs)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_down_has_codes_and_scales_of_the_right_shape(kind: str, data: str, axis: int) -> None:
    case, inputs, expected = make(data, direction="down", format=kind, axis=axis)
    shape, blocks = [2, 64, 34], [2, 64, 34]
    shape[axis] //= 2 if kind == "mxfp4" else 1
    blocks[axis] = -(-blocks[axis] // 32)
    assert list(expected["values"].estimate.value.shape) == shape
    assert list(expected["scales"].estimate.value.shape) == blocks
    assert expected["values"].dtype == expected["scales"].dtype == torch.uint8
    again = codec.encode(inputs["x"].double(), kind, axis, "half-away")
    assert torch.equal(expected["values"].estimate.value, again[0].double())
    assert set(Mxfp().axes(case, inputs)) == set(expected)


def test_exact_data_holds_ties_so_that_the_roundings_differ() -> None:
    _, inputs, expected = make("exact", direction="down", format="mxfp4", axis=1)
    (even,) = expected["values"].alternatives
    assert (even.value != expected["values"].estimate.value).float().mean() > 0.1
    assert (expected["scales"].estimate.value == 127).all() and not expected["scales"].alternatives
    assert (inputs["x"].double() * 4).frac().abs().max() == 0


def test_fp8_has_one_answer_only() -> None:
    for kind in FORMATS[1:]:
        _, _, expected = make("normal", direction="down", format=kind, axis=2)
        for other in expected["values"].alternatives:
            assert torch.equal(other.value, expected["values"].estimate.value)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_up_is_the_decoded_value_rounded_once(kind: str, dtype: str, axis: int) -> None:
    _, inputs, expected = make("normal", direction="up", format=kind, dtype=dtype, axis=axis)
    decoded = codec.decode(inputs["values"], inputs["scales"], axis)
    out = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    assert decoded.shape == (2, 64, 34) and expected["x"].dtype == out
    assert torch.equal(expected["x"].estimate.value, decoded.float().to(out).double())
    assert expected["x"].estimate.error is None and torch.isfinite(decoded).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_normal_data_meets_many_scales(kind: str) -> None:
    _, _, expected = make("normal", direction="down", format=kind, axis=1)
    assert len(expected["scales"].estimate.value.unique()) > 2


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"rows": -1}, "rows must be at least 1"),
        ({"columns": 0}, "columns must be at least 1"),
        ({"rows": 33, "axis": 1}, "even, not 33"),
        ({"batch": 3, "axis": 0}, "even, not 3"),
    ],
)
def test_impossible_parameters_have_a_reason(params: dict[str, Any], words: str) -> None:
    check = Mxfp()
    assert words in str(check.reason_against({**check.spec.defaults, **params}, "exact"))
    if "even" in words:
        assert check.reason_against({**check.spec.defaults, **params, "format": "mxfp8_e4m3"}, "exact") is None
