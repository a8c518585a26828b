"""Plain torch does the same work as the kernels, or its time says nothing; and what calls cost, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks import load
from gpucheck.checks.attention import visible_range
from gpucheck.checks.base import Check
from gpucheck.model.case import Case
from gpucheck.model.record import Cost
from gpucheck.plan import scenario

STEPS = scenario.load(scenario.find("smoke")).steps
SMOKE = {step.case.id: step.case for step in STEPS if step.case.data != "wide"}  # whose time is that of other data


def overflows(case: Case) -> bool:
    """Whether a sink of exact data is beyond the dtype that SDPA wants it in."""
    return case.check == "attention" and case["sinks"] and (case["dtype"], case.data) == ("fp16", "exact")


ROUTED = {"mode": "routed", "experts": 8, "top_k": 2, "m": 6, "n": 20, "k": 64}
PLAIN = [
    *(case for case in SMOKE.values() if type(load(case.check)).plain is not Check.plain and not overflows(case)),
    *(
        load("matmul").spec.case(params, "normal", 0)
        for params in (
            {**ROUTED, "load": "skewed", "gather": True, "bias": True, "swiglu": True},
            {**ROUTED, "load": "one", "scatter": True, "gammas": True, "bias": True, "weight": "mxfp4"},
            {**ROUTED, "weight": "fp8_e4m3", "out": "fp32"},
            {**ROUTED, "weight": "mxfp8_e4m3", "k": 40},
            {"mode": "batched", "batch": 3, "m": 5, "n": 8, "k": 16, "bias": True},
        )
    ),
]


def inputs_of(case: Case) -> dict[str, Tensor]:
    return load(case.check).inputs(case, torch.Generator().manual_seed(case.input_seed))


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.id)
def test_plain_torch_computes_the_same(case: Case) -> None:
    check, inputs = load(case.check), inputs_of(case)
    (expected,) = check.reference(case, inputs).values()
    call = check.plain(case, inputs)
    assert call is not None
    given, right = call().double(), expected.estimate.value
    assert given.shape == right.shape
    if case.check == "attention":
        first, last = visible_range(case)
        given, right = given[..., last >= first, :], right[..., last >= first, :]  # SDPA gives NaN where no key is seen
    assert float((given - right).norm()) <= 0.02 * float(right.norm())


def test_every_kind_of_work_has_been_compared() -> None:
    assert {case.check for case in PLAIN} == {"matmul", "moe", "attention", "swiglu"}
    assert {case["mode"] for case in PLAIN if case.check == "matmul"} == {"dense", "batched", "routed"}
    assert {"mxfp4", "mxfp8_e4m3", "fp8_e5m2", "fp32"} <= {case["weight"] for case in PLAIN if case.check == "matmul"}
    assert {True, False} == {case["sinks"] for case in PLAIN if case.check == "attention"}


def cost(name: str, **params: Any) -> Cost:
    check = load(name)
    case = check.spec.case(params, check.spec.usual_data[-1], 0)
    assert check.reason_against(case.params, case.data) is None
    found = check.cost(case, inputs_of(case))
    assert found is not None
    return found


def test_what_a_dense_product_costs() -> None:
    assert cost("matmul", m=3, n=5, k=7) == Cost(2 * 3 * 5 * 7, 2 * (3 * 7 + 7 * 5 + 3 * 5))
    assert cost("matmul", m=3, n=6, k=7, swiglu=True, bias=True, out="fp32") == Cost(
        2 * 3 * 6 * 7, 2 * (3 * 7 + 7 * 6) + 4 * 6 + 4 * 3 * 3
    )
    batched = cost("matmul", mode="batched", batch=4, m=3, n=5, k=7)
    assert batched == Cost(4 * 2 * 3 * 5 * 7, 4 * 2 * (3 * 7 + 7 * 5 + 3 * 5))


def test_only_experts_that_have_tokens_are_read() -> None:
    routed = {"mode": "routed", "weight": "mxfp4", "experts": 8, "top_k": 2, "m": 5, "n": 6, "k": 64, "load": "one"}
    weight = 6 * (64 // 2 + 64 // 32)  # codes and scales of one expert
    tables, x, y = 4 * 8, 2 * 10 * 64, 2 * 10 * 6
    assert cost("matmul", **routed) == Cost(2 * 10 * 6 * 64, 2 * weight + tables + x + y)
    gathered = cost("matmul", **routed, gather=True, bias=True)
    assert gathered.bytes == 2 * (weight + 4 * 6) + tables + 4 * 10 + 2 * 5 * 64 + y
    scattered = cost("matmul", **routed, scatter=True, gammas=True)
    assert scattered.bytes == 2 * weight + tables + 2 * 4 * 10 + x + 2 * 5 * 6
    spread = cost("matmul", **{**routed, "load": "random", "m": 500})
    assert spread.bytes == 8 * weight + tables + 100 * (x + y)


def test_what_an_expert_block_costs() -> None:
    found = cost("moe", weight="bf16", m=5, hidden=8, intermediate=6, experts=4, top_k=2, load="one")
    per_expert = 2 * 8 * 12 + 4 * 12 + 2 * 6 * 8 + 4 * 8
    assert found == Cost(2 * 10 * (8 * 12 + 6 * 8), 2 * per_expert + 4 * 4 + 2 * 4 * 10 + 2 * 2 * 5 * 8)


def test_what_attention_costs() -> None:
    shape = {"batch": 2, "q_heads": 4, "kv_heads": 2, "head_dim": 64}
    row = 2 * 2 * 64  # bytes of one position of one head, in both sequences
    full = cost("attention", **shape, mask="full", q_len=3, k_len=9)
    assert full == Cost(4 * 2 * 4 * 27 * 64, row * (2 * 2 * 9 + 2 * 4 * 3))
    causal = cost("attention", **shape, q_len=3, k_len=9)
    assert causal == Cost(4 * 2 * 4 * (7 + 8 + 9) * 64, full.bytes)
    decode = cost("attention", **shape, mask="window", window=4, q_len=1, k_len=9, sinks=True)
    assert decode == Cost(4 * 2 * 4 * 4 * 64, row * (2 * 2 * 4 + 2 * 4 * 1) + 4 * 4), "four keys are read, not nine"
    blind = cost("attention", **shape, q_len=9, k_len=3)
    assert blind.flops == 4 * 2 * 4 * (1 + 2 + 3) * 64, "the first queries see no key"


def test_what_moves_bytes_only_costs() -> None:
    assert cost("swiglu", m=3, n=8, dtype="fp32") == Cost(0, 4 * 3 * (8 + 4))
    assert cost("topk", m=3, experts=8, top_k=2) == Cost(0, 2 * 3 * 8 + 3 * 2 * (2 + 4))
    assert cost("routing", m=3, experts=8, top_k=2) == Cost(0, 2 * 3 * 8 + 4 * 8 + 3 * 4 * 6)


def test_a_check_need_not_know_either() -> None:
    check = load("mxfp")
    case = check.spec.case({}, "exact", 0)
    assert check.cost(case, {}) is None and check.plain(case, {}) is None
