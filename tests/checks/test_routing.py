"""``routing`` and ``topk`` against sorting in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks.base import Check
from gpucheck.checks.routing import Routing
from gpucheck.checks.topk import TopK
from gpucheck.model.case import Case
from gpucheck.verify import bounds
from gpucheck.verify.expected import Expected

SHAPES: list[dict[str, Any]] = [
    {"m": 1},
    {"m": 37, "experts": 16},
    {"m": 9, "experts": 5, "top_k": 3},
    {"m": 6, "experts": 4, "top_k": 4},
    {"m": 5, "experts": 1, "top_k": 1},
    {"m": 33, "experts": 13, "top_k": 6, "load": "skewed"},
    {"m": 17, "experts": 128, "load": "one"},
]


def make(check: Check, data: str, **params: Any) -> tuple[Case, Tensor, dict[str, Expected]]:
    case = check.spec.case(params, data, 0)
    assert check.reason_against(case.params, data) is None
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    return case, inputs["logits"], check.reference(case, inputs)


def chosen(logits: list[float], k: int) -> list[int]:
    """The k largest, the smaller id winning ties, in ascending order."""
    return sorted(sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k])


def weights(logits: list[float], ids: list[int]) -> list[float]:
    top = max(logits[i] for i in ids)
    exponentials = [math.exp(logits[i] - top) for i in ids]
    return [value / math.fsum(exponentials) for value in exponentials]


@pytest.mark.parametrize("params", SHAPES)
@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_topk_picks_and_weighs_like_sorting(params: dict[str, Any], data: str, dtype: str) -> None:
    case, logits, expected = make(TopK(), data, dtype=dtype, **params)
    ids, values = expected["experts"].estimate, expected["values"].estimate
    rows = logits.double().tolist()
    assert ids.value.tolist() == [chosen(row, case["top_k"]) for row in rows] and ids.error is None
    right = [weights(row, chosen(row, case["top_k"])) for row in rows]
    assert torch.allclose(values.value, torch.tensor(right, dtype=torch.float64), rtol=1e-13, atol=0)
    assert expected["experts"].dtype == torch.int32 and expected["values"].dtype == logits.dtype


@pytest.mark.parametrize("params", SHAPES)
@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_routing_tables_follow_from_the_choice(params: dict[str, Any], data: str, dtype: str) -> None:
    case, logits, expected = make(Routing(), data, dtype=dtype, **params)
    k, rows = case["top_k"], logits.double().tolist()
    flat = [(expert, token * k + slot) for token, row in enumerate(rows) for slot, expert in enumerate(chosen(row, k))]
    ordered = sorted(flat)
    assert expected["histogram"].estimate.value.tolist() == [
        sum(expert == e for expert, _ in flat) for e in range(case["experts"])
    ]
    assert expected["to_flat"].estimate.value.tolist() == [index for _, index in ordered]
    places = expected["to_sorted"].estimate.value.long().tolist()
    assert [ordered[place][1] for place in places] == list(range(len(flat)))
    gates = [weight for row in rows for weight in weights(row, chosen(row, k))]
    stored = torch.tensor([gates[index] for _, index in ordered], dtype=torch.float64)
    estimate, kept = expected["gates"].estimate, expected["gates"].dtype
    allowed = bounds.tolerance(kept, estimate.value, estimate.error if estimate.error is not None else stored * 0)
    assert kept == logits.dtype and ((estimate.value - stored).abs() <= allowed).all()


@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("load", ["random", "skewed", "one"])
def test_a_softmax_over_all_comes_before_the_choice_and_leaves_it_unique(data: str, dtype: str, load: str) -> None:
    case, logits, expected = make(TopK(), data, dtype=dtype, m=21, experts=128, softmax="all", load=load)
    stored = torch.softmax(logits, -1)  # in the dtype of the logits, as the library is given it
    rows = stored.double().tolist()
    ids = [chosen(row, case["top_k"]) for row in rows]
    assert expected["experts"].estimate.value.tolist() == ids
    estimate = expected["values"].estimate
    assert estimate.error is not None and expected["values"].dtype == logits.dtype
    right = torch.tensor([[row[i] for i in picked] for row, picked in zip(rows, ids, strict=True)], dtype=torch.float64)
    assert ((estimate.value - right).abs() <= bounds.tolerance(logits.dtype, estimate.value, estimate.error)).all()
    assert (estimate.value.sum(1) < 1).any()


def test_a_softmax_over_more_experts_than_it_tells_apart_is_refused() -> None:
    params = {**TopK.spec.defaults, "experts": 129, "softmax": "all"}
    assert "at most 128 experts" in str(TopK().reason_against(params, "normal"))
    assert "wide logits" in str(TopK().reason_against({**params, "experts": 8}, "wide"))


@pytest.mark.parametrize("load", ["random", "skewed", "one"])
def test_exact_logits_are_made_of_ties_that_the_ids_must_break(load: str) -> None:
    case, logits, expected = make(TopK(), "exact", m=64, experts=16, top_k=4, load=load)
    tied = (logits == logits.amax(1, keepdim=True)).sum(1)
    assert (tied >= 4).all() and (tied > 4).any()
    backwards = logits.flip(1).double().sort(dim=-1, descending=True, stable=True).indices[:, :4]
    assert not torch.equal((15 - backwards).sort(dim=-1).values.double(), expected["experts"].estimate.value)
    assert (expected["values"].estimate.value == 0.25).all() and expected["values"].estimate.error is None


@pytest.mark.parametrize("check", [TopK(), Routing()])
def test_gates_are_exact_only_where_a_quotient_cannot_round(check: Check) -> None:
    name = "values" if isinstance(check, TopK) else "gates"
    for k in range(1, 9):
        _, _, expected = make(check, "exact", m=5, experts=8, top_k=k, dtype="fp32")
        assert (expected[name].estimate.error is None) is (k in (1, 2, 4, 8))


@pytest.mark.parametrize("check", [TopK(), Routing()])
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"m": 0}, "m must be at least 1, not 0"),
        ({"m": -4}, "not -4"),
        ({"top_k": 0}, "1 <= top_k"),
        ({"top_k": 9}, "not 9 and 8"),
        ({"experts": 0}, "not 4 and 0"),
    ],
)
def test_impossible_parameters_have_a_reason(check: Check, params: dict[str, Any], words: str) -> None:
    assert words in str(check.reason_against({**check.spec.defaults, **params}, "exact"))
