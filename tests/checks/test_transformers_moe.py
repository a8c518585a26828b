"""The reference of ``transformers_moe`` against a loop over tokens, and data that leaves no doubt about the routing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks.transformers_moe import TransformersMoe
from gpucheck.model.case import Case
from gpucheck.verify import bounds

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
SMALL = {"m": 9, "hidden": 64, "intermediate": 32, "experts": 8, "top_k": 2}


@pytest.fixture(scope="module")
def case() -> Case:
    return TransformersMoe.spec.case(SMALL, "normal", 0)


@pytest.fixture(scope="module")
def inputs(case: Case) -> dict[str, Tensor]:
    return TransformersMoe().inputs(case, torch.Generator().manual_seed(case.input_seed))


def weight(inputs: dict[str, Tensor], name: str, expert: int) -> Tensor:
    codes = inputs[name][expert]
    nibbles = torch.stack([codes & 15, codes >> 4], 1).flatten(0, 1).long()
    plain = torch.where(nibbles >= 8, -1.0, 1.0).double() * FP4[nibbles % 8]
    scales = torch.pow(2.0, inputs[f"{name}_scale"][expert].double() - 127)
    return plain * torch.stack([scales[term // 32] for term in range(len(plain))])


def stored(values: Tensor) -> Tensor:
    return values.float().bfloat16().double()


def test_the_reference_is_what_a_loop_over_tokens_computes(case: Case, inputs: dict[str, Tensor]) -> None:
    expected = TransformersMoe().reference(case, inputs)
    rounded, whole = torch.zeros(9, 64).double(), torch.zeros(9, 64).double()
    for token, x in enumerate(inputs["x"].double()):
        scores = [float(x @ row) for row in inputs["router"].double()]
        assert expected["router_logits"].estimate.value[token].tolist() == scores
        chosen = sorted(range(8), key=lambda expert: (-scores[expert], expert))[:2]
        gates = stored(torch.softmax(torch.tensor([scores[expert] for expert in chosen]).double(), 0))
        for expert, gate in zip(chosen, gates, strict=True):
            inner = x @ weight(inputs, "up", expert) + inputs["up_bias"][expert].double()
            gated, linear = inner[0::2].clamp(max=7.0), inner[1::2].clamp(-7.0, 7.0)
            inner = stored(gated * torch.sigmoid(1.702 * gated) * (linear + 1))
            row = (inner @ weight(inputs, "down", expert) + inputs["down_bias"][expert].double()) * gate
            rounded[token] += stored(row)
            whole[token] += row
    y = expected["y"]
    assert torch.allclose(y.estimate.value, rounded, rtol=1e-9, atol=1e-9)
    assert torch.allclose(y.alternatives[0].value, whole, rtol=1e-9, atol=1e-9)


def test_router_logits_are_exact_in_whatever_order_they_are_summed(case: Case, inputs: dict[str, Tensor]) -> None:
    x, router = inputs["x"], inputs["router"]
    assert x.dtype == router.dtype == torch.bfloat16 and ((router != 0).sum(1) == 8).all()
    wanted = x.double() @ router.double().T
    for order in (slice(None), torch.randperm(64, generator=torch.Generator().manual_seed(1))):
        total = torch.zeros(9, 8, dtype=torch.bfloat16)
        for column in torch.arange(64)[order].tolist():
            total = total + x[:, column, None] * router[:, column]
        assert torch.equal(total.double(), wanted), "even in bf16"
    assert len(wanted.unique()) > 10


def test_experts_left_out_and_gates_forgotten_are_outside_the_bound(case: Case, inputs: dict[str, Tensor]) -> None:
    estimate = TransformersMoe().reference(case, inputs)["y"].estimate
    assert estimate.error is not None
    allowed = bounds.tolerance(torch.bfloat16, estimate.value, estimate.error)
    for name in ("router", "up", "up_scale", "up_bias", "down", "down_scale", "down_bias", "x"):
        other = TransformersMoe().reference(case, {**inputs, name: inputs[name].roll(1, 0)})["y"].estimate.value
        assert ((other - estimate.value).abs() > allowed).double().mean() > 0.2, name


@pytest.mark.parametrize(
    ("params", "words"),
    [({"m": 0}, "m must be"), ({"hidden": 40}, "multiples of 32"), ({"top_k": 33}, "not 33 and 32")],
)
def test_impossible_parameters_have_a_reason(params: dict[str, Any], words: str) -> None:
    assert words in str(TransformersMoe().reason_against({**TransformersMoe.spec.defaults, **params}, "normal"))
