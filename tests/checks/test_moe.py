"""The reference of ``moe`` against a loop over tokens and their experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks.moe import Moe
from gpucheck.model.case import Case
from gpucheck.verify import bounds

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)


def weight(case: Case, inputs: dict[str, Tensor], name: str, expert: int) -> Tensor:
    values = inputs[name][expert]
    if case["weight"] == "bf16":
        return values.double()
    codes = torch.stack([values & 15, values >> 4], 1).flatten(0, 1).long()
    plain = torch.where(codes >= 8, -1.0, 1.0).double() * FP4[codes % 8]
    scales = torch.pow(2.0, inputs[f"{name}_scale"][expert].double() - 127)
    return plain * torch.stack([scales[term // 32] for term in range(plain.shape[0])])


def stored(values: Tensor) -> Tensor:
    return values.float().bfloat16().double()


def token_output(case: Case, inputs: dict[str, Tensor], token: int) -> Tensor:
    total = torch.zeros(case["hidden"], dtype=torch.float64)
    expert_of = [e for e, count in enumerate(inputs["histogram"].tolist()) for _ in range(count)]
    for position, flat in enumerate(inputs["to_flat"].tolist()):
        if flat // case["top_k"] != token:
            continue
        expert = expert_of[position]
        inner = inputs["x"][token].double() @ weight(case, inputs, "w1", expert) + inputs["bias1"][expert].double()
        gate, linear = inner[0::2].clamp(max=7.0), inner[1::2].clamp(-7.0, 7.0)
        activated = stored(gate * torch.sigmoid(1.702 * gate) * (linear + 1))
        row = activated @ weight(case, inputs, "w2", expert) + inputs["bias2"][expert].double()
        total += stored(row * inputs["gates"][position].double())
    return total


@pytest.mark.parametrize(
    "params",
    [
        {"m": 7, "hidden": 64, "intermediate": 32, "experts": 4, "top_k": 2},
        {"m": 5, "hidden": 48, "intermediate": 40, "experts": 8, "top_k": 4, "load": "skewed"},
        {"m": 3, "hidden": 32, "intermediate": 32, "experts": 3, "top_k": 1, "load": "one", "weight": "bf16"},
        {"m": 9, "hidden": 32, "intermediate": 32, "experts": 3, "top_k": 2, "elsewhere": 5, "weight": "bf16"},
    ],
    ids=lambda p: Moe.spec.case(p, "normal", 0).id,
)
def test_the_reference_is_what_a_loop_over_tokens_computes(params: dict[str, Any]) -> None:
    check = Moe()
    case = check.spec.case(params, "normal", 3)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    expected = check.reference(case, inputs)["y"]
    estimate = expected.estimate
    loops = torch.stack([token_output(case, inputs, token) for token in range(case["m"])])
    assert expected.dtype == torch.bfloat16 and estimate.error is not None and estimate.value.shape == loops.shape
    assert torch.allclose(estimate.value, loops, rtol=1e-9, atol=1e-9)
    assert (estimate.error < 0.05 * loops.abs().max()).all()


def test_a_wrong_expert_a_lost_gate_and_a_missing_bias_are_outside_the_bound() -> None:
    check = Moe()
    case = check.spec.case({"m": 9, "experts": 4, "top_k": 2}, "normal", 0)
    inputs = check.inputs(case, torch.Generator().manual_seed(1))
    estimate = check.reference(case, inputs)["y"].estimate
    assert estimate.error is not None
    allowed = bounds.tolerance(torch.bfloat16, estimate.value, estimate.error)
    for name in ("w1", "w1_scale", "w2", "w2_scale", "bias1", "bias2", "gates", "x"):
        wrong = dict(inputs)
        wrong[name] = inputs[name].roll(1, 0)
        other = check.reference(case, wrong)["y"].estimate.value
        assert ((other - estimate.value).abs() > allowed).float().mean() > 0.2, name


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"m": 0}, "m must be at least 1"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"intermediate": -2}, "intermediate must be at least 1"),
        ({"top_k": 0}, "1 <= top_k"),
        ({"top_k": 9}, "not 9 and 8"),
        ({"hidden": 33}, "even"),
        ({"elsewhere": -1}, "negative"),
        ({"intermediate": 33}, "even"),
        ({"weight": "bf16", "layout": "default"}, "mx weights"),
    ],
)
def test_impossible_parameters_have_a_reason(params: dict[str, Any], words: str) -> None:
    assert words in str(Moe().reason_against({**Moe.spec.defaults, **params}, "normal"))
