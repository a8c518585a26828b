"""Attention kernels against the CPU in fp32: their bounds are tighter than the absolute error of 1e-3 people take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpucheck.checks import load
from gpucheck.verify import bounds

USUAL = 1e-3  # absolute error that such kernels are commonly held to in fp32
SMALL: dict[str, dict[str, Any]] = {
    "softmax": {"m": 32, "n": 32},
    "weighted_matmul": {"m": 32, "k": 32, "n": 32},
    "attention": {"mask": "full", "dtype": "fp32", "q_heads": 1, "q_len": 32, "k_len": 32},
}
CASES = [
    *SMALL.items(),
    ("softmax", {"m": 33, "n": 70, "masked": True}),
    ("softmax", {"m": 4, "n": 32768}),
    ("weighted_matmul", {"m": 40, "k": 130, "n": 64}),
    ("weighted_matmul", {"m": 8, "k": 4096, "n": 128}),
    ("attention", {"mask": "full", "dtype": "fp32", "q_heads": 2, "q_len": 21, "k_len": 43, "head_dim": 128}),
    ("attention", {"mask": "full", "dtype": "fp32", "q_heads": 1, "q_len": 16, "k_len": 4096, "head_dim": 128}),
]


@pytest.mark.parametrize(("name", "params"), CASES)
def test_bounds_are_tighter_than_usual(name: str, params: dict[str, Any]) -> None:
    check = load(name)
    case = check.spec.case(params, "normal", 0)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    for expected in check.reference(case, inputs).values():
        estimate = expected.estimate
        assert expected.dtype == torch.float32 and estimate.error is not None
        allowed = bounds.tolerance(expected.dtype, estimate.value, estimate.error)
        assert 0 < float(allowed.max()) < USUAL / 2


@pytest.mark.parametrize(("name", "params"), SMALL.items())
def test_smoke_holds_them_small_and_in_fp32(name: str, params: dict[str, Any]) -> None:
    from gpucheck.plan import scenario

    wanted = load(name).spec.case(params, "normal", 0).id
    assert wanted in {step.case.id for step in scenario.load(scenario.find("smoke")).steps}
