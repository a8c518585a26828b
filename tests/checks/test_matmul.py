"""The reference of ``matmul`` against loops over rows, columns and terms."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks.matmul import SWIGLU, WEIGHTS, Matmul
from gpucheck.model.case import Case
from gpucheck.model.errors import Inapplicable
from gpucheck.verify.bounds import Estimate

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def make(data: str = "normal", seed: int = 0, **params: Any) -> tuple[Case, dict[str, Tensor], Estimate]:
    check = Matmul()
    case = check.spec.case(params, data, seed)
    assert check.reason_against(case.params, data) is None
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    (expected,) = check.reference(case, inputs).values()
    assert expected.dtype == DTYPES[case["out"]]
    return case, inputs, expected.estimate


def weight(case: Case, inputs: dict[str, Tensor], lead: tuple[int, ...], term: int, column: int) -> float:
    if not case["weight"].startswith("mx"):
        return float(inputs["w"][(*lead, term, column)].double())
    scale = 2.0 ** (int(inputs["w_scale"][(*lead, term // 32, column)]) - 127)
    if case["weight"] == "mxfp4":
        byte = int(inputs["w"][(*lead, term // 2, column)])
        code = byte >> 4 if term % 2 else byte & 15
        return (-1 if code & 8 else 1) * FP4[code & 7] * scale
    return float(inputs["w"][(*lead, term, column)].double()) * scale


def row(case: Case, inputs: dict[str, Tensor], x: Tensor, lead: tuple[int, ...]) -> list[float]:
    """One row of activations through the weight of one expert, batch or all."""
    result = []
    for column in range(case["n"]):
        total = math.fsum(
            float(x[term].double()) * weight(case, inputs, lead, term, column) for term in range(case["k"])
        )
        if case["weight"].startswith("fp8"):
            total *= float(inputs["x_scale"]) * float(inputs["w_scale"][lead[0] if case["scales"] == "each" else 0])
        if case["bias"]:
            total += float(inputs["bias"][(*lead, column)])
        result.append(total)
    if not case["swiglu"]:
        return result
    alpha, limit = SWIGLU
    activated = []
    for gate, linear in zip(result[0::2], result[1::2], strict=True):
        gate, linear = min(gate, limit), max(-limit, min(linear, limit))
        activated.append(gate / (1 + math.exp(-alpha * gate)) * (linear + 1))
    return activated


def naive(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    x, rows = inputs["x"], []
    if case["mode"] == "dense":
        rows = [row(case, inputs, x[i], ()) for i in range(case["m"])]
    elif case["mode"] == "batched":
        rows = [[row(case, inputs, x[b, i], (b,)) for i in range(case["m"])] for b in range(case["batch"])]
    else:
        position, k = 0, case["top_k"]
        tokens: list[list[float]] = [[0.0] * case["n"] for _ in range(case["m"])]
        for expert, count in enumerate(inputs["histogram"].tolist()):
            for _ in range(count):
                token = int(inputs["to_flat"][position]) // k
                result = row(case, inputs, x[token if case["gather"] else position], (expert,))
                if case["gammas"]:
                    result = [value * float(inputs["gates"][position]) for value in result]
                rows.append(result)
                if case["scatter"] and k > 1 and case["split_k"] <= 1:
                    result = torch.tensor(result, dtype=torch.float64).float().to(DTYPES[case["out"]]).double().tolist()
                if case["scatter"]:
                    tokens[token] = [a + b for a, b in zip(tokens[token], result, strict=True)]
                position += 1
        rows = tokens if case["scatter"] else rows
    return torch.tensor(rows, dtype=torch.float64)


SMALL = {"m": 5, "n": 6, "k": 64}
ROUTED = {**SMALL, "mode": "routed", "experts": 4, "top_k": 2}
CASES: list[dict[str, Any]] = [
    *({**SMALL, "weight": kind} for kind in WEIGHTS),
    {**SMALL, "bias": True, "out": "fp32"},
    {**SMALL, "swiglu": True, "bias": True},
    {**SMALL, "mode": "batched", "batch": 3, "bias": True},
    {**SMALL, "mode": "batched", "batch": 2, "weight": "mxfp4"},
    *({**ROUTED, "weight": kind, "gather": True, "bias": True} for kind in ("bf16", "fp8_e5m2", "mxfp8_e4m3", "mxfp4")),
    {**ROUTED, "load": "skewed", "gammas": True},
    {**ROUTED, "load": "one", "scatter": True},
    {**ROUTED, "scatter": True, "gammas": True, "bias": True, "out": "fp16"},
    {**ROUTED, "scatter": True, "gammas": True, "split_k": 2},
    {**ROUTED, "top_k": 1, "gather": True, "scatter": True, "gammas": True},
    {**ROUTED, "gather": True, "swiglu": True, "weight": "mxfp4"},
    {**ROUTED, "elsewhere": 4, "bias": True},
    {**ROUTED, "elsewhere": 9, "gather": True, "scatter": True, "gammas": True},
    {**ROUTED, "elsewhere": 4, "top_k": 1, "gather": True, "scatter": True, "gammas": True},
    {**ROUTED, "weight": "fp8_e5m2", "scales": "each", "gather": True},
    {**SMALL, "mode": "batched", "batch": 3, "weight": "fp8_e4m3", "scales": "each", "bias": True},
]


@pytest.mark.parametrize("params", CASES, ids=lambda p: Matmul.spec.case(p, "normal", 0).id)
@pytest.mark.parametrize("data", ["exact", "normal"])
def test_the_reference_is_what_loops_compute(params: dict[str, Any], data: str) -> None:
    if params.get("swiglu") and data == "exact":
        assert "normal data only" in str(Matmul().reason_against({**Matmul.spec.defaults, **params}, data))
        return
    case, inputs, estimate = make(data, **params)
    expected = naive(case, inputs)
    assert estimate.value.shape == expected.shape
    if data == "exact":
        assert estimate.error is None and torch.equal(estimate.value, expected)
    else:
        assert estimate.error is not None and (estimate.error >= 0).all()
        assert ((estimate.value - expected).abs() <= 1e-12 * (1 + expected.abs()) + estimate.error / 1000).all()
        assert estimate.error.max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize(
    "params",
    [
        {**ROUTED, "weight": "mxfp4", "gather": True, "scatter": True, "gammas": True, "bias": True},
        {**SMALL, "weight": "fp8_e4m3"},
        {**SMALL, "mode": "batched", "batch": 2, "weight": "fp16", "bias": True},
    ],
)
def test_views_hold_what_dense_operands_hold_and_no_kernel_can_take_them_for_dense(params: dict[str, Any]) -> None:
    case, inputs, estimate = make(**params, operands="views", seed=2)
    assert "operands-views" in case.id
    for name, tensor in inputs.items():
        if name.endswith("_scale") or name in ("ids", "id_gates"):
            continue
        assert tensor.storage_offset() == 16, name
        inner, outer = (-2, -1) if name == "w" else (-1, -2)
        assert tensor.stride(inner) == 1, name
        assert tensor.ndim == 1 or tensor.stride(outer) >= tensor.shape[inner] + 32, name
    dense = {name: tensor.contiguous() for name, tensor in inputs.items()}
    assert torch.equal(Matmul().reference(case, dense)["y"].estimate.value, estimate.value)


def test_random_data_reaches_every_part_of_the_reference() -> None:
    """Every input matters: changing any one moves the reference."""
    params = {**ROUTED, "weight": "mxfp4", "gather": True, "scatter": True, "gammas": True, "bias": True, "out": "fp32"}
    case, inputs, estimate = make(**params)
    for name in inputs:
        if name in ("histogram", "to_flat", "to_sorted", "ids", "id_gates"):  # the last two are for the library alone
            continue
        changed = dict(inputs)
        changed[name] = inputs[name].clone()
        changed[name][0] = changed[name][0] + 1
        other = Matmul().reference(case, changed)["y"].estimate
        assert not torch.equal(other.value, estimate.value), name


@pytest.mark.parametrize(
    "params",
    [
        {**SMALL, "m": 0},
        {**SMALL, "n": 0},
        {**SMALL, "k": 0},
        {**ROUTED, "m": 0, "gather": True, "scatter": True, "gammas": True, "bias": True},
        {**SMALL, "mode": "batched", "batch": 2, "m": 0, "bias": True},
    ],
    ids=lambda p: Matmul.spec.case(p, "normal", 0).id,
)
@pytest.mark.parametrize("data", ["exact", "normal"])
def test_empty_products(params: dict[str, Any], data: str) -> None:
    case, inputs, estimate = make(data, **params)
    lead = (case["batch"],) if case["mode"] == "batched" else ()
    assert estimate.value.shape == (*lead, case["m"], case["n"]) and (estimate.value == 0).all()
    assert Matmul().axes(case, inputs)["y"].names[-1] == "column"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"m": -1}, "negative"),
        ({"split_k": -1}, "negative"),
        ({"mode": "batched"}, "batch goes with"),
        ({"batch": 2}, "batch goes with"),
        ({"mode": "routed"}, "1 <= top_k <= experts, not 0 and 0"),
        ({"mode": "routed", "experts": 2, "top_k": 3}, "not 3 and 2"),
        ({"experts": 2}, "go with mode routed"),
        ({"gather": True}, "go with mode routed"),
        ({"mode": "batched", "batch": 1, "scatter": True}, "go with mode routed"),
        ({"weight": "mxfp4", "k": 33}, "even"),
        ({"layout": "default"}, "mx weights"),
        ({"elsewhere": -1}, "negative"),
        ({"elsewhere": 2}, "go with mode routed"),
        ({"scales": "each", "weight": "fp8_e5m2"}, "several experts or products"),
        ({"scales": "each", "mode": "batched", "batch": 2}, "fp8 weights"),
        ({"bare": True, "weight": "fp32"}, "bf16 or fp16"),
        ({"bare": True, "out": "fp32"}, "out must be the same"),
        ({"swiglu": True, "n": 7}, "even n"),
        ({"mode": "routed", "experts": 2, "top_k": 1, "swiglu": True, "scatter": True}, "no scatter"),
        ({"mode": "routed", "experts": 2, "top_k": 1, "swiglu": True, "gammas": True}, "need split_k = 1"),
    ],
)
def test_impossible_parameters_have_a_reason(params: dict[str, Any], words: str) -> None:
    for data in ("normal", "exact") if "swiglu" not in params else ("normal",):
        assert words in str(Matmul().reason_against({**Matmul.spec.defaults, **params}, data))


@pytest.mark.parametrize(
    ("kind", "terms"),
    [("fp8_e4m3", 2048), ("fp32", 4096), ("bf16", 2**18), ("fp16", 2**18), ("mxfp8_e4m3", 2**16), ("mxfp4", 43690)],
)
def test_exact_data_has_a_longest_sum(kind: str, terms: int) -> None:
    check, step = Matmul(), 32 if kind.startswith("mxfp8") else 2
    for data, extra, allowed in (("exact", 0, True), ("exact", step, False), ("normal", step, True)):
        reason = check.reason_against({**check.spec.defaults, "weight": kind, "k": terms + extra}, data)
        assert (reason is None) is allowed


def test_axes_own_rows_by_expert() -> None:
    check = Matmul()
    case, inputs, _ = make(**ROUTED, gather=True)
    owner = check.axes(case, inputs)["y"].owners["expert"].flatten().tolist()
    assert owner == sorted(owner) and [owner.count(e) for e in range(4)] == inputs["histogram"].tolist()
    case, inputs, _ = make(**ROUTED, scatter=True)
    members = check.axes(case, inputs)["y"].owners["expert"].tolist()
    expert = [e for e, count in enumerate(inputs["histogram"].tolist()) for _ in range(count)]
    slots = [expert[position] for position in inputs["to_sorted"].tolist()]
    assert [index for pair in members for index in pair] == slots and len(members) == case["m"]


def test_operands_beyond_32_bits_need_a_gpu() -> None:
    check = Matmul()
    case = check.spec.case({**SMALL, "operands": "far"}, "exact", 0)
    inputs = check.inputs(case, torch.Generator().manual_seed(0))
    with pytest.raises(Inapplicable, match="need a GPU with 48 GiB free, not the CPU"):
        check.prepare(case, inputs, SimpleNamespace(device=torch.device("cpu")))
    assert "at least 2" in str(check.reason_against({**check.spec.defaults, "operands": "far", "m": 1}, "exact"))
