"""Wide data: what a right computation may make of it passes, and what it may not does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks import experts, load, wide
from gpucheck.checks import operands as data
from gpucheck.checks.matmul import WEIGHTS, Matmul
from gpucheck.checks.routing import WIDE_ROWS, reference_topk
from gpucheck.checks.topk import _valid
from gpucheck.model.case import Case
from gpucheck.verify import bounds, extremes
from gpucheck.verify.expected import Expected
from gpucheck.verify.judge import judge

SMALL = {"m": 16, "n": 24, "k": 96}
ROWS = {name: row for row, name in enumerate(wide.SPECIAL_ROWS, 1)}
USUAL = [0, *range(len(ROWS) + 1, 16)]
Made = tuple[Case, dict[str, Tensor], Expected]


def make(seed: int = 0, **params: Any) -> Made:
    check = Matmul()
    case = check.spec.case({**SMALL, **params}, "wide", seed)
    assert check.reason_against(case.params, "wide") is None
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    return case, inputs, check.reference(case, inputs)["y"]


def operands(case: Case, inputs: dict[str, Tensor], *, flush: bool, fast: bool) -> tuple[Tensor, Tensor]:
    """What a kernel multiplies, in float32: subnormal numbers flushed, byte 255 taken for Inf as fast math does."""
    kind = case["weight"]
    x = inputs["x"].float()
    scales = inputs["w_scale"] if kind.startswith("mx") else None
    w = data.decode_weight(kind, inputs["w"], scales).float()
    if fast and scales is not None:
        clean = data.decode_weight(kind, inputs["w"], torch.where(scales == 255, 127, scales)).float()
        w = torch.where(w.isnan(), clean * torch.inf, w)
    if flush:
        x = x.masked_fill(extremes.subnormal(inputs["x"]), 0.0)
        w = w.masked_fill(wide.small(kind, inputs["w"], scales), 0.0)
    return x, w


def added(x: Tensor, w: Tensor, order: Callable[[int], Any]) -> Tensor:
    """The products of each element, added in fp32 one after the other in an order of their own."""
    total = torch.zeros(x.shape[0], w.shape[1])
    for term in order(x.shape[1]):
        total = total + x[:, term, None] * w[term]
    return total


ORDERS: dict[str, Callable[[int], Any]] = {
    "forwards": range,
    "backwards": lambda terms: reversed(range(terms)),
    "shuffled": lambda terms: torch.randperm(terms, generator=torch.Generator().manual_seed(1)).tolist(),
}


def finished(case: Case, inputs: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    if case["weight"].startswith("fp8"):
        y = y * (inputs["x_scale"] * inputs["w_scale"])
    return {"y": y.to(data.DTYPES[case["out"]])}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("seed", range(2))
def test_every_order_with_and_without_subnormal_numbers_is_right(kind: str, seed: int) -> None:
    case, inputs, expected = make(seed, weight=kind, out="fp32")
    for flush, fast in ((False, False), (True, True)):
        given = operands(case, inputs, flush=flush, fast=fast)
        for order in ORDERS.values():
            y = finished(case, inputs, added(*given, order))["y"]
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                assert judge({"y": y.to(dtype)}, {"y": replace(expected, dtype=dtype)}, {}).mismatches == []


@pytest.mark.parametrize("kind", WEIGHTS)
def test_usual_rows_are_judged_as_sharply_as_other_data(kind: str) -> None:
    case, inputs, expected = make(weight=kind, out="fp32")
    error, value = expected.estimate.error, expected.estimate.value
    assert error is not None and expected.also is not None
    columns = [c for c in range(case["n"]) if not kind.startswith("mx") or c not in wide.SCALE_COLUMNS]
    usual = (USUAL, torch.tensor(columns)[:, None])
    assert (expected.also[usual] == 0).all(), "nothing but the sum is right"
    most = 0.02 if kind.startswith("fp8") else 2.0**-14
    assert float(error[usual].mean() / value[usual].abs().mean()) < most
    exponents = inputs["x"].float()[USUAL].abs().log2().amax(0)
    assert float(exponents.max() - exponents.min()) >= 1.7 * wide.HALF_RANGE.get(kind, 124)


def test_scale_bytes_reach_both_ends_and_are_mostly_those_of_real_weights_in_a_block_of_three() -> None:
    _, inputs, _ = make(weight="mxfp4", k=192)
    scales = inputs["w_scale"]
    assert {0, 254, 255} <= set(scales.flatten().tolist())
    assert ((scales == 119) | (scales == 120)).sum() >= 2 * (24 - 3), "two of six blocks"
    assert (scales < 30).any(1).any() and (scales > 224).any(1).any()


@pytest.mark.parametrize("kind", ["bf16", "fp32", "mxfp4"])
def test_special_rows_are_what_they_are_called_and_stay_in_their_row(kind: str) -> None:
    case, inputs, expected = make(weight=kind, out="fp32")
    value, also = expected.estimate.value, expected.also
    assert also is not None
    plain = torch.tensor([c for c in range(case["n"]) if c not in wide.SCALE_COLUMNS])
    assert value[ROWS["nan"]].isnan().all() and (also[ROWS["nan"]] == extremes.NAN).all()
    assert value[ROWS["inf"], plain].isfinite().sum() == 0
    zeros = inputs["w"] if kind != "mxfp4" else data.decode_fp4(inputs["w"], -2)
    place = int(inputs["x"][ROWS["inf"]].isinf().nonzero()[0])
    assert torch.equal(value[ROWS["inf"], plain].isnan(), zeros[place, plain] == 0), "Inf times zero is NaN"
    assert (inputs["x"][ROWS["zero"]].signbit() & (value[ROWS["zero"]].nan_to_num() == 0).all()).all()
    assert extremes.subnormal(inputs["x"][ROWS["subnormal"]]).all()
    assert value[ROWS["overflow"], plain].isinf().any()
    order = also[ROWS["order"], plain]
    assert (order == extremes.ANY).any() and ((order == extremes.INF) | (order == extremes.MINUS_INF)).any()
    assert value[USUAL][:, plain].isfinite().all()


def wrong(kind: str, spoil: Callable[[dict[str, Tensor], Tensor], Tensor | None], **params: Any) -> set[int]:
    """The rows that are found wrong where a kernel gets spoilt operands, or spoils what it gives."""
    case, inputs, expected = make(weight=kind, **params)
    given = {name: tensor.clone() for name, tensor in inputs.items()}
    x, w = operands(case, given, flush=False, fast=False)
    y = finished(case, given, added(x, w, range))["y"]
    spoilt = spoil(given, y)
    if spoilt is None:
        y = finished(case, given, added(*operands(case, given, flush=False, fast=False), range))["y"]
    found = judge({"y": y if spoilt is None else spoilt}, {"y": expected}, {}).mismatches
    assert found
    (mismatch,) = found
    return set(range(mismatch.box[0][0], mismatch.box[0][1] + 1))


def test_what_is_not_allowed_is_found() -> None:
    def nan_below(inputs: dict[str, Tensor], y: Tensor) -> Tensor:
        y[ROWS["nan"] - 1] = torch.nan
        return y

    def nan_lost(inputs: dict[str, Tensor], y: Tensor) -> Tensor:
        y[ROWS["nan"]] = 0.0
        return y

    def saturated(inputs: dict[str, Tensor], y: Tensor) -> Tensor:
        return y.clamp(torch.finfo(y.dtype).min, torch.finfo(y.dtype).max)

    def other_sign(inputs: dict[str, Tensor], y: Tensor) -> Tensor:
        return torch.where(y.isinf(), -y, y)

    assert wrong("bf16", nan_below) == {ROWS["nan"] - 1}
    assert wrong("bf16", nan_lost) == {ROWS["nan"]}
    assert ROWS["overflow"] in wrong("bf16", saturated)
    assert ROWS["overflow"] in wrong("bf16", other_sign)


@pytest.mark.parametrize(("byte", "instead"), [(0, 127), (254, 126), (254, 0), (255, 127), (119, 120)])
def test_a_scale_byte_taken_for_another_is_found(byte: int, instead: int) -> None:
    def taken(inputs: dict[str, Tensor], y: Tensor) -> None:
        inputs["w_scale"][inputs["w_scale"] == byte] = instead

    assert len(wrong("mxfp4", taken, out="fp32")) > 8


def reference(name: str, **params: Any) -> tuple[Case, dict[str, Tensor], dict[str, Expected]]:
    check = load(name)
    case = check.spec.case(params, "wide", 0)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    return case, inputs, check.reference(case, inputs)


def rows_found(output: Tensor, expected: Expected) -> list[list[int]]:
    """First and last wrong row of an output; empty where all is right."""
    return [found.box[-2] for found in judge({"y": output}, {"y": expected}, {}).mismatches]


def both_ways(least: Any, most: Any, *, least_first: bool = True) -> Callable[[Tensor, float], Tensor]:
    """A clamp between ``-limit`` and ``limit`` by these two functions."""

    def clamp(x: Tensor, limit: float) -> Tensor:
        upper = torch.tensor(limit)
        return most(-upper, least(x, upper)) if least_first else least(most(x, -upper), upper)

    return clamp


CLAMPS = {
    "keeps NaN": (torch.minimum, both_ways(torch.minimum, torch.maximum)),
    "upper limit": (torch.fmin, both_ways(torch.fmin, torch.fmax)),
    "lower limit, as tl.clamp": (torch.fmin, both_ways(torch.fmin, torch.fmax, least_first=False)),
}


@pytest.mark.parametrize("clamps", CLAMPS.values(), ids=CLAMPS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_swiglu_may_keep_nan_or_clamp_it(dtype: str, clamps: Any) -> None:
    case, inputs, _ = reference("swiglu", m=20, n=32, dtype=dtype)
    inputs["x"][ROWS["nan"], 2] = inputs["x"][ROWS["nan"], 7] = torch.nan  # of a gate, and of what one multiplies
    expected = load("swiglu").reference(case, inputs)
    x, (least, clamp) = inputs["x"].float(), clamps
    gate, linear = least(x[:, 0::2], torch.tensor(7.0)), clamp(x[:, 1::2], 7.0)
    activated = gate / (1 + torch.exp(-1.702 * gate))
    y = torch.addcmul(activated, activated, linear).to(inputs["x"].dtype)
    assert rows_found(y, expected["y"]) == []
    zeros = y.clone()
    zeros[ROWS["nan"] + 1 :] = torch.where(y[ROWS["nan"] + 1 :].isnan(), 0.0, y[ROWS["nan"] + 1 :])
    assert rows_found(zeros, expected["y"]) == [[ROWS["inf"]] * 2], "a gate of -Inf gives NaN"
    spread = y.index_fill(0, torch.tensor([ROWS["nan"] - 1]), torch.nan)
    assert rows_found(spread, expected["y"])[0][0] == ROWS["nan"] - 1


@pytest.mark.parametrize("clamps", CLAMPS.values(), ids=CLAMPS)
def test_a_token_of_nan_comes_out_of_experts_as_their_clamps_leave_it(clamps: Any) -> None:
    case, inputs, expected = reference("moe", weight="bf16", m=16, hidden=64, intermediate=48, experts=4, top_k=2)
    least, clamp = clamps

    def block(expert: int, rows: bounds.Estimate) -> bounds.Estimate:
        x = rows.value.float() @ inputs["w1"][expert].float() + inputs["bias1"][expert]
        gate, linear = least(x[:, 0::2], torch.tensor(7.0)), clamp(x[:, 1::2], 7.0)
        inner = (gate / (1 + torch.exp(-1.702 * gate)) * (linear + 1)).bfloat16().float()
        y = (inner @ inputs["w2"][expert].float() + inputs["bias2"][expert]).double()
        return bounds.Estimate(y, torch.zeros_like(y))

    x = experts.rows_of(data.as_estimate(inputs["x"], "normal"), inputs, 2, gather=True)
    gates = inputs["gates"][: experts.served(inputs), None].double()
    rows = (experts.each_expert(x, inputs, 64, block).value * gates).bfloat16().double()
    y = experts.to_tokens(bounds.Estimate(rows, torch.zeros_like(rows)), inputs, 2).value.sum(1).bfloat16()
    assert rows_found(y, expected["y"]) == []
    swapped = y.clone()
    swapped[wide.SPECIAL_ROWS.index("nan") + 1] *= -1.0
    assert clamps is CLAMPS["keeps NaN"] or rows_found(swapped, expected["y"]) == [[1, 1]]


def test_a_softmax_keeps_nan_in_its_row() -> None:
    _, inputs, expected = reference("softmax", m=20, n=40)
    y = torch.softmax(inputs["x"], 1)
    assert rows_found(y, expected["y"]) == [] and y[ROWS["nan"]].isnan().all()
    assert rows_found(torch.softmax(inputs["x"].nan_to_num(), 1), expected["y"]) == [[ROWS["nan"], ROWS["inf"]]]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("kind", ["mxfp4", "mxfp8_e4m3", "mxfp8_e5m2"])
def test_a_decoder_may_saturate_and_may_take_a_subnormal_scale_for_zero(kind: str, dtype: str) -> None:
    _, inputs, expected = reference("mxfp", direction="up", format=kind, dtype=dtype, rows=96, columns=64)
    scales, codes = inputs["scales"], inputs["values"]
    assert (scales == 255).any() and (dtype == "fp16" or {0, 254} <= set(scales.flatten().tolist()))
    plain = data.decode_fp4(codes, 1) if kind == "mxfp4" else codes.double()
    factor = torch.exp2(scales.double() - 127).masked_fill(scales == 255, torch.nan).repeat_interleave(32, 1)
    x = (plain * factor).float().to(data.DTYPES[dtype])
    most = torch.finfo(x.dtype).max
    zero = (scales == 0).repeat_interleave(32, 1)
    for right in (x, x.clamp(-most, most), x.masked_fill(zero, 0.0)):
        assert rows_found(right, expected["x"]) == []
    for wrong_one in (x.nan_to_num(nan=0.0), x.masked_fill(factor.isfinite() & (factor >= 2.0**15), 0.0)):
        assert rows_found(wrong_one, expected["x"]) != []


def test_blocks_of_all_sizes_are_quantised() -> None:
    _, inputs, expected = reference("mxfp", direction="down", rows=96, columns=64)
    scales = expected["scales"].estimate.value
    assert scales.min() == 0 and scales[scales > 0].min() < 30 and scales.max() > 230
    assert (inputs["x"].signbit() & (inputs["x"] == 0)).any()


def test_experts_of_a_row_of_nan_are_only_asked_to_exist() -> None:
    case, inputs, expected = reference("topk", m=9, experts=60, dtype="bf16")
    _, ids = reference_topk(inputs["logits"], case["top_k"])
    row = WIDE_ROWS.index("nan") + 1
    ids[row] = torch.tensor([1, 2, 3, 59])
    outputs = {"experts": ids.to(torch.int32), "valid": torch.ones(9, dtype=torch.uint8)}
    given = {name: expected[name] for name in outputs}
    assert judge(outputs, given, {}).mismatches == []
    assert _valid(ids.to(torch.int32), 60).all()
    for bad in ([0, 1, 2, 60], [-1, 1, 2, 3], [3, 3, 4, 5]):
        ids[row] = torch.tensor(bad)
        outputs["valid"] = _valid(ids.to(torch.int32), 60)
        assert [found.output for found in judge(outputs, given, {}).mismatches] == ["valid"]
    ids[row], ids[0, 0] = torch.tensor([1, 2, 3, 4]), ids[0, 0] ^ 1
    assert [found.output for found in judge({**outputs, "experts": ids.to(torch.int32)}, given, {}).mismatches]


def test_a_token_of_nan_may_be_nan_or_clamped_in_an_expert_block_and_no_other_token_may_be() -> None:
    _, inputs, expected = reference("moe", m=9, experts=4, top_k=2)
    (token,) = inputs["x"].isnan().any(1).nonzero().flatten().tolist()
    value = expected["y"].estimate.value
    assert value.isfinite().all()
    y = value.to(torch.bfloat16)
    assert rows_found(y, expected["y"]) == []
    y[token] = torch.nan
    assert rows_found(y, expected["y"]) == []
    y[token + 1] = torch.nan
    assert rows_found(y, expected["y"]) == [[token + 1] * 2]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_query_of_nan_stays_alone_in_attention(dtype: str) -> None:
    _, inputs, expected = reference("attention", dtype=dtype, q_heads=2, q_len=9, k_len=20, sinks=False)
    q, k, v = (inputs[name].double() for name in "qkv")
    seen = torch.ones(9, 20, dtype=torch.bool).tril(11)
    scores = (q @ k.mT / 8).masked_fill(~seen, -torch.inf)
    o = (torch.softmax(scores, -1) @ v).to(inputs["q"].dtype)
    assert rows_found(o, expected["o"]) == [] and o[:, :, 1].isnan().all()
    assert extremes.subnormal(inputs["q"][:, :, 3]).all() and inputs["q"][:, :, 2].signbit().all()
    o[:, 1, 2] = torch.nan
    assert rows_found(o, expected["o"]) == [[2, 2]]
    spread = inputs["q"][:, :, 4:].double().abs().amax((0, 1, 2)).log2()
    assert spread.max() - spread.min() > (8 if dtype == "fp16" else 60)
