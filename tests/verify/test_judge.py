from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.model.record import Mismatch
from gpucheck.records.run_folder import finite
from gpucheck.verify import bounds
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Axes, Expected
from gpucheck.verify.extremes import INF, MINUS_INF, NAN
from gpucheck.verify.judge import Judgement, judge

ROWS, COLUMNS = 6, 5
FLOATS = [torch.bfloat16, torch.float16, torch.float32]
KIND = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32, torch.int32: torch.int32}


def compare(output: Tensor, value: Tensor, error: Tensor | None = None, **changes: Any) -> Judgement:
    expected = Expected(Estimate(value, error), changes.pop("dtype", output.dtype), **changes)
    names = ("row", "column", "depth")[: value.ndim]
    return judge({"y": output}, {"y": expected}, {"y": Axes(names, (2, 2, 0)[: value.ndim])})


def one(result: Judgement) -> Mismatch:
    assert not result.violations
    (mismatch,) = result.mismatches
    return mismatch


def whole_numbers() -> Tensor:
    return torch.arange(1, ROWS * COLUMNS + 1, dtype=torch.float64).reshape(ROWS, COLUMNS)


def randn(seed: int) -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32, torch.uint8])
def test_right_outputs_pass(dtype: torch.dtype) -> None:
    result = compare(whole_numbers().to(dtype), whole_numbers())
    assert (result.mismatches, result.violations, result.tightness) == ([], [], 0.0)


def test_exact_data_is_rounded_once_and_judged_without_tolerance() -> None:
    value = whole_numbers() * 1001  # more bits than bf16 has
    right = bounds.round_to(torch.bfloat16, value).bfloat16()
    assert not compare(right, value).mismatches
    for direction in (math.inf, -math.inf):
        off = right.clone()
        step = 1 if direction > 0 else -1
        off.view(torch.int16)[3, 2] += step
        found = one(compare(off, value))
        assert (found.method, found.wrong, found.total, found.ulps, found.bound) == ("exact", 1, 30, 1, 0.0)
        assert found.first == found.worst == [3, 2]
        assert found.bias == step


def test_minus_zero_is_zero() -> None:
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    assert not compare(-zeros.bfloat16(), zeros).mismatches
    assert not compare(zeros.bfloat16(), -zeros).mismatches
    assert not compare(-zeros.bfloat16(), zeros, zeros + 1e-9).mismatches


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int32])
@pytest.mark.parametrize("place", [(0, 0), (3, 2), (5, 4)])
def test_a_single_flipped_bit_is_found_and_named(dtype: torch.dtype, place: tuple[int, int]) -> None:
    value = whole_numbers() * 8
    for bit in {0, 7, 14, 8 * dtype.itemsize - 1}:
        output = value.to(dtype)
        bits = output.view(KIND[dtype])
        bits[place] ^= -(2 ** (8 * dtype.itemsize - 1)) if bit == 8 * dtype.itemsize - 1 else 1 << bit
        found = one(compare(output, value))
        assert (found.bits, found.wrong, found.first, found.box) == ([bit], 1, [*place], [[i, i] for i in place])


def test_a_mismatch_carries_a_map() -> None:
    output = whole_numbers().bfloat16()
    output[3, 2] += 1
    heat = one(compare(output, whole_numbers())).heat
    assert heat is not None and (heat.shape, heat.cell, heat.tile) == ([6, 5], [1, 1], [2, 2])
    assert [(r, c) for r in range(6) for c in range(5) if heat.per_mille[r][c]] == [(3, 2)]


def test_bits_are_named_only_where_every_element_differs_in_one() -> None:
    output = whole_numbers().bfloat16()
    output.view(torch.int16)[0, 0] ^= 1
    output.view(torch.int16)[1, 1] ^= 1 << 7
    assert one(compare(output, whole_numbers())).bits == [0, 7]
    output.view(torch.int16)[2, 2] ^= 3
    assert one(compare(output, whole_numbers())).bits == []


def test_bits_of_large_integers_are_not_lost_to_rounding() -> None:
    value = torch.tensor([2.0**24 + 1, 2.0**31 - 1], dtype=torch.float64)
    output = value.to(torch.int32)
    assert not compare(output, value).mismatches
    output[0] ^= 1 << 20
    assert one(compare(output, value)).bits == [20]
    wide = value.to(torch.int64)
    wide[1] ^= -(2**63)
    assert one(compare(wide, value)).bits == [63]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("exact", [True, False])
def test_nan_and_inf_are_wrong_and_counted_apart(bad: float, dtype: torch.dtype, exact: bool) -> None:
    value = whole_numbers()
    output = value.to(dtype)
    output[2, 1] = bad
    output[4, 0] = 99.0
    found = one(compare(output, value, None if exact else torch.full_like(value, 1e-3)))
    assert (found.wrong, found.nan, found.inf) == (2, int(math.isnan(bad)), int(math.isinf(bad)))
    assert found.first_nonfinite == found.worst == [2, 1]
    assert found.got is None if math.isnan(bad) else found.got == bad
    assert (found.ulps, found.expected, found.bias) == (None, 12.0, 1.0)


def test_all_nan() -> None:
    found = one(compare(torch.full((ROWS, COLUMNS), math.nan), whole_numbers(), whole_numbers() * 0))
    assert (found.wrong, found.nan, found.bias, found.worst) == (30, 30, 0.0, [0, 0])


def test_nan_and_inf_in_the_reference_never_let_an_output_pass() -> None:
    value = whole_numbers()
    value[1, 1] = math.nan
    for error in (None, torch.zeros_like(value)):
        for output in (value.bfloat16(), whole_numbers().bfloat16()):
            assert one(compare(output, value, error)).first == [1, 1]
    value[1, 1] = math.inf
    assert one(compare(whole_numbers().bfloat16(), value)).worst == [1, 1]
    assert not compare(value.bfloat16(), value).mismatches


@pytest.mark.parametrize("error", [None, 1.0])
def test_overflow_is_right_where_a_right_result_overflows(error: float | None) -> None:
    value = torch.tensor([65519.0, 65521.0, 1e6, -1e6, 60000.0], dtype=torch.float64)
    errors = None if error is None else torch.full_like(value, error)
    right = torch.tensor([65504.0, math.inf, math.inf, -math.inf, 60000.0], dtype=torch.float16)
    assert not compare(right, value, errors).mismatches
    for place, bad in ((4, math.inf), (2, -math.inf), (2, 65504.0), (3, math.inf)):
        wrong = right.clone()
        wrong[place] = bad
        assert one(compare(wrong, value, errors)).first == [place]


def test_a_bound_is_half_an_ulp_of_the_output_plus_the_error() -> None:
    value, error = torch.tensor([1.0 + 2.0**-9], dtype=torch.float64), torch.tensor([2.0**-20], dtype=torch.float64)
    result = compare(torch.tensor([1.0], dtype=torch.float32), value, error)
    found = one(result)
    assert found.method == "bound" and found.bound == 2.0**-24 + 2.0**-20 and found.ulps == 2**14
    assert not compare(torch.tensor([1.0], dtype=torch.bfloat16), value, error).mismatches
    just_inside = torch.tensor([float(value) + 2.0**-20], dtype=torch.float32)
    assert compare(just_inside, value, error).tightness == pytest.approx(1 - 2.0**-4)


def test_tightness_is_the_largest_share_of_the_bound_that_was_used() -> None:
    value = whole_numbers()
    output = value.float()
    output[2, 2] += 0.5
    result = compare(output, value, torch.ones_like(value))
    assert not result.mismatches and result.tightness == pytest.approx(0.5, abs=1e-5)


def test_the_worst_element_is_the_furthest_outside_its_bound_not_the_furthest() -> None:
    value = torch.tensor([1.0, 1000.0], dtype=torch.float64)
    error = torch.tensor([1e-6, 10.0], dtype=torch.float64)
    found = one(compare(torch.tensor([1.1, 1011.0]), value, error))
    assert (found.first, found.worst, found.wrong) == ([0], [0], 2)
    assert one(compare(torch.tensor([1.1, 1011.0]), value)).worst == [1]  # exact data: the furthest value


def test_a_distance_beyond_counting_is_not_counted() -> None:
    assert one(compare(torch.tensor([3e38]).bfloat16(), torch.tensor([0.0]).double())).ulps is None


def test_bias_tells_one_sided_errors() -> None:
    value = whole_numbers()
    assert one(compare((value + 1).bfloat16(), value)).bias == 1.0
    assert one(compare((value - 1).bfloat16(), value)).bias == -1.0
    mixed = value.clone()
    mixed[::2] += 1
    mixed[1::2] -= 1
    assert one(compare(mixed.bfloat16(), value)).bias == 0.0


def test_integers_take_no_error_and_no_rounding() -> None:
    value = whole_numbers() + 2**24
    output = value.to(torch.int32)
    output[5, 4] += 2
    found = one(compare(output, value, torch.full_like(value, 100.0)))
    assert (found.method, found.wrong, found.ulps, found.bits, found.bound) == ("integer", 1, None, [], 0.0)


def test_alternatives_count_only_as_a_whole() -> None:
    first, second = whole_numbers(), whole_numbers() + 1
    alternatives = (Estimate(second, None),)
    assert not compare(first.to(torch.uint8), first, alternatives=alternatives).mismatches
    assert not compare(second.to(torch.uint8), first, alternatives=alternatives).mismatches
    mixed = second.clone()
    mixed[0] = first[0]
    found = one(compare(mixed.to(torch.uint8), first, alternatives=alternatives))
    assert (found.wrong, found.box) == (COLUMNS, [[0, 0], [0, 4]])  # told against the closer answer


def test_poison_counts_wrong_elements_only() -> None:
    output = whole_numbers().to(torch.int32)
    output[1:3, 1] = -1
    assert one(compare(output, whole_numbers())).poison == 2
    value = whole_numbers()
    value[0, 0] = 255
    codes = value.to(torch.uint8)
    codes[4] = 255
    assert one(compare(codes, value)).poison == COLUMNS
    half = whole_numbers().bfloat16()
    half.view(torch.int16)[2] = -1
    found = one(compare(half, whole_numbers()))
    assert (found.poison, found.nan) == (COLUMNS, COLUMNS)
    half.view(torch.int16)[2] = 0x00FF  # one byte of two
    assert one(compare(half, whole_numbers())).poison == 0


@pytest.mark.parametrize(
    ("cleared", "further", "unwritten"),
    [
        (0, 0x3F3F3F3F, 2),  # the fill shows through, whatever it is
        (7, 7, 0),  # 7 is right: a NaN that kept its bits through a sum was written
        (0, 99, 0),  # a product with the fill: zero of zeros, NaN of NaN
        (-1, -1, 0),  # a value that looks like poison
    ],
)
def test_poison_must_show_through_in_every_fill(cleared: int, further: int, unwritten: int) -> None:
    value = whole_numbers()

    def held(fill: int) -> dict[str, torch.Tensor]:
        output = value.to(torch.int32)
        output[1:3, 1] = fill
        return {"y": output}

    expected = {"y": Expected(Estimate(value, None), torch.int32)}
    filled = {0xFF: held(-1), 0x00: held(cleared), 0x3F: held(further)}
    (found,) = judge(held(-1), expected, {}, filled).mismatches
    assert (found.wrong, found.poison) == (2, unwritten)
    assert found.follows == (0 if cleared == further == -1 else 2)
    (known,) = judge(held(-1), expected, {}, {0xFF: {}, 0x00: {}}).mismatches
    assert known.poison == 0, "what is known to be a read of other memory was written"


def test_missing_and_misshapen_outputs_are_violations() -> None:
    value = whole_numbers()
    assert [v.kind for v in judge({}, {"y": Expected(Estimate(value, None), torch.float32)}, {}).violations] == [
        "output"
    ]
    for output, words in (
        (value.float().T.contiguous(), r"shape \(5, 6\), the reference \(6, 5\)"),
        (value.float()[None], "shape"),
        (value.float()[:, :4], "shape"),
        (value.double(), "asked for torch.float32"),
        (value.bfloat16(), "is torch.bfloat16, asked for torch.float32"),
    ):
        result = compare(output, value, dtype=torch.float32)
        assert not result.mismatches and re.search(words, result.violations[0].detail)


def test_a_check_that_names_no_output_proves_nothing() -> None:
    assert judge({"y": torch.ones(1)}, {}, {}).violations[0].kind == "no reference"


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,)])
@pytest.mark.parametrize("error", [None, 0.0])
def test_empty_outputs_pass_if_they_are_as_empty_as_expected(shape: tuple[int, ...], error: float | None) -> None:
    value = torch.zeros(shape, dtype=torch.float64)
    errors = None if error is None else torch.zeros_like(value)
    result = compare(torch.zeros(shape), value, errors)
    assert not result.mismatches and not result.violations and result.tightness == 0.0


def test_a_scalar_output() -> None:
    found = one(compare(torch.tensor(3.0), torch.tensor(4.0).double()))
    assert (found.first, found.worst, found.box, found.total) == ([], [], [], 1)


def test_strided_outputs_are_judged_by_their_elements() -> None:
    value = whole_numbers()
    stored = value.T.contiguous().bfloat16().T
    assert not stored.is_contiguous() and not compare(stored, value).mismatches
    stored.T.view(torch.int16)[3, 2] = -1
    found = one(compare(stored, value))
    assert (found.first, found.poison) == ([2, 3], 1)


def test_every_output_is_judged() -> None:
    value = whole_numbers()
    expected = {name: Expected(Estimate(value, None), torch.float32) for name in ("a", "b", "c")}
    outputs = {"a": value.float() + 1, "b": value.float(), "c": value.float() - 1}
    result = judge(outputs, expected, dict.fromkeys(expected, Axes(("row", "column"), (0, 0))))
    assert [mismatch.output for mismatch in result.mismatches] == ["a", "c"]


def corrupt_drop(x: Tensor, w: Tensor) -> Tensor:
    return x[:, :-1] @ w[:-1]


def corrupt_tile(x: Tensor, w: Tensor) -> Tensor:
    y = x @ w
    y[16:32, 16:32] = 0
    return y


def corrupt_transpose(x: Tensor, w: Tensor) -> Tensor:
    return x @ w.T


def corrupt_half_accumulator(x: Tensor, w: Tensor) -> Tensor:
    total = torch.zeros(x.shape[0], w.shape[1], dtype=torch.float64)
    for term in range(x.shape[1]):
        total = bounds.round_to(torch.float16, total + x[:, term, None] * w[term])
    return total


@pytest.mark.parametrize(
    "corrupt", [corrupt_drop, corrupt_tile, corrupt_transpose, corrupt_half_accumulator], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("exact", [True, False])
def test_planted_kernel_bugs_are_caught(corrupt: Callable[[Tensor, Tensor], Tensor], exact: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    if exact:
        x, w = (torch.randint(-8, 9, (64, 64), generator=generator).double() for _ in range(2))
        reference = bounds.product(Estimate(x, None), Estimate(w, None))
    else:
        x, w = (torch.randn((64, 64), generator=generator).bfloat16().double() for _ in range(2))
        reference = bounds.product(Estimate(x, x * 0), Estimate(w, w * 0))
    axes = {"y": Axes(("row", "column"), (16, 16))}
    for out in (torch.bfloat16, torch.float32):
        expected = {"y": Expected(reference, out)}
        assert not judge({"y": (x.float() @ w.float()).to(out)}, expected, axes).mismatches
        if corrupt is corrupt_half_accumulator and (exact or out is torch.bfloat16):
            continue  # small integers fit fp16, and bf16 keeps less than fp16
        assert judge({"y": corrupt(x, w).to(out)}, expected, axes).mismatches


def test_nothing_is_said_of_elements_without_a_reference() -> None:
    value = torch.tensor([[1.0, math.nan], [3.0, 4.0]], dtype=torch.float64)
    unknown = torch.isnan(value)
    expected = {"y": Expected(Estimate(value, torch.zeros_like(value)), torch.float32, unknown=unknown)}
    axes = {"y": Axes(("row", "column"), (0, 0))}
    assert not judge({"y": torch.tensor([[1.0, 7.0], [3.0, 4.0]])}, expected, axes).mismatches
    (found,) = judge({"y": torch.tensor([[1.0, math.nan], [3.0, 5.0]])}, expected, axes).mismatches
    assert (found.wrong, found.first, found.worst) == (1, [1, 1], [1, 1])


def test_what_an_element_may_be_as_well_is_right_there_and_nowhere_else() -> None:
    value = torch.tensor([1.0, torch.nan, torch.inf, 2.0, 3.0, 4.0], dtype=torch.float64)
    also = torch.tensor([0, NAN, INF, INF, NAN | MINUS_INF, 0], dtype=torch.uint8)
    for error in (torch.zeros(6, dtype=torch.float64), None):
        for right in ([1.0, torch.nan, torch.inf, torch.inf, torch.nan, 4.0], [1.0, torch.nan, torch.inf, 2, 3, 4]):
            assert compare(torch.tensor(right), value, error, also=also).mismatches == []
        spoilt = torch.tensor([torch.nan, 7.0, -torch.inf, -torch.inf, torch.inf, torch.nan])
        found = one(compare(spoilt, value, error, also=also))
        assert found.wrong == 6
        assert (found.nan, found.inf, found.first_nonfinite) == (2, 3, [0])
        json.dumps(finite(asdict(found)), allow_nan=False)  # records hold it


def test_right_nan_and_inf_are_not_counted_among_the_wrong() -> None:
    value = torch.tensor([torch.nan, torch.inf, 1.0], dtype=torch.float64)
    also = torch.tensor([NAN, INF, 0], dtype=torch.uint8)
    found = one(compare(torch.tensor([torch.nan, torch.inf, 5.0]), value, torch.zeros_like(value), also=also))
    assert (found.wrong, found.nan, found.inf, found.first_nonfinite, found.bias) == (1, 0, 0, None, 1.0)
