from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from gpucheck.verify import bounds
from gpucheck.verify.bounds import Estimate

FORMATS = {torch.bfloat16: (8, -126, 127), torch.float16: (11, -14, 15), torch.float32: (24, -126, 127)}
DTYPES = list(FORMATS)
SEEDS = range(4)


def oracle(dtype: torch.dtype, value: float) -> float:
    """Rounds to nearest even in rational arithmetic."""
    bits, lowest, highest = FORMATS[dtype]
    if math.isnan(value) or math.isinf(value) or value == 0:
        return value
    size = abs(Fraction(value))
    exponent = max(math.frexp(value)[1] - 1, lowest)
    quantum = Fraction(2) ** (exponent - bits + 1)
    count, rest = divmod(size, quantum)
    if rest * 2 > quantum or (rest * 2 == quantum and count % 2):
        count += 1
    rounded = count * quantum
    result = math.inf if rounded >= Fraction(2) ** (highest + 1) else float(rounded)
    return math.copysign(result, value)


def awkward_values(dtype: torch.dtype, seed: int) -> list[float]:
    """Values whose rounding goes wrong easily: ties, almost ties, subnormals, the ends of the range."""
    bits, lowest, highest = FORMATS[dtype]
    draw = random.Random(seed)
    values = [0.0, -0.0, math.inf, -math.inf, 5e-324, -5e-324, 1.7976931348623157e308]
    largest = float((2 - Fraction(2) ** (1 - bits)) * Fraction(2) ** highest)
    values += [largest, math.nextafter(largest, math.inf), 2.0 ** (highest + 1), largest + 2.0 ** (highest - bits)]
    values.append(math.nextafter(largest + 2.0 ** (highest - bits), 0.0))
    for _ in range(400):
        exponent = draw.choice([draw.randint(lowest - bits - 3, highest), draw.randint(-4, 4), lowest])
        mantissa = draw.randint(2 ** (bits - 1), 2**bits - 1)
        tie = math.ldexp(2 * mantissa + 1, exponent - bits)
        values += [tie, math.nextafter(tie, 0.0), math.nextafter(tie, math.inf)]
        values += [tie * (1 + 2.0**-30), tie * (1 - 2.0**-30)]  # lost by a first rounding to fp32
        values += [math.ldexp(draw.random() + 1, exponent), math.ldexp(mantissa, exponent - bits + 1)]
    return [sign * value for value in values for sign in (1, -1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_round_to_rounds_once_to_nearest_even(dtype: torch.dtype, seed: int) -> None:
    values = awkward_values(dtype, seed)
    got = bounds.round_to(dtype, torch.tensor(values, dtype=torch.float64)).tolist()
    wrong = [
        (value, result, oracle(dtype, value))
        for value, result in zip(values, got, strict=True)
        if result != oracle(dtype, value) or math.copysign(1, result) != math.copysign(1, value)
    ]
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_awkward_values_do_tell_double_rounding(dtype: torch.dtype) -> None:
    values = torch.tensor(awkward_values(dtype, 0), dtype=torch.float64)
    twice = values.to(torch.float32).to(dtype).double()
    assert not torch.equal(twice, bounds.round_to(dtype, values))


def test_round_to_keeps_nan_and_knows_its_dtypes() -> None:
    assert torch.isnan(bounds.round_to(torch.bfloat16, torch.tensor([math.nan], dtype=torch.float64))).all()
    for dtype in (torch.float8_e5m2, torch.int32, torch.complex64):
        with pytest.raises(ValueError, match="not defined"):
            bounds.round_to(dtype, torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ulp_is_the_step_to_the_next_value(dtype: torch.dtype) -> None:
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    last = {torch.bfloat16: 0x7F7E, torch.float16: 0x7BFE, torch.float32: 0x7F7FFFFE}[dtype]
    codes = torch.cat([torch.arange(300), torch.randint(0, last, (3000,)), torch.tensor([last])]).to(kind)
    here, after = codes.view(dtype).double(), (codes + 1).view(dtype).double()
    assert torch.equal(bounds.ulp(dtype, here), after - here)


def test_ulp_refuses_dtypes_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="no ulp is known"):
        bounds.ulp(torch.float8_e5m2, torch.ones(1, dtype=torch.float64))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def normal(x: Tensor) -> Estimate:
    return Estimate(x.double(), torch.zeros(x.shape, dtype=torch.float64))


def holds(result: Tensor, estimate: Estimate) -> bool:
    """Whether an fp32 result lies within the error that the estimate allows, without a final rounding."""
    assert estimate.error is not None
    return bool(((result.double() - estimate.value).abs() <= estimate.error).all())


def in_order(x: Tensor, w: Tensor, order: Tensor, chunk: int) -> Tensor:
    """``x @ w`` in fp32: terms in ``order``, one running sum for each chunk, chunks summed last."""
    x, w = x[:, order].float(), w[order].float()
    parts = []
    for start in range(0, x.shape[1], chunk):
        total = torch.zeros(x.shape[0], w.shape[1])
        for term in range(start, min(start + chunk, x.shape[1])):
            total = total + x[:, term, None] * w[term]
        parts.append(total)
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("terms", [1, 2, 17, 64, 333])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_product_holds_for_every_order_of_summation(terms: int, dtype: torch.dtype) -> None:
    for seed in range(6):
        x, w = randn(16, terms, seed=seed).to(dtype), randn(terms, 24, seed=seed + 100).to(dtype)
        estimate = bounds.product(normal(x), normal(w))
        order = torch.randperm(terms, generator=torch.Generator().manual_seed(seed))
        for chunk in (1, 16, terms):
            assert holds(in_order(x, w, order, chunk), estimate)


@pytest.mark.parametrize(("terms", "seed", "row", "column"), [(64, 0, 486, 729), (144, 1, 349, 191)])
def test_a_sum_is_right_whose_parts_were_several_times_as_large(terms: int, seed: int, row: int, column: int) -> None:
    """Two of the sums that were called wrong: made one term after the other, no rounding follows what they end at."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((512, terms), generator=generator)[[row]]
    w = torch.randn((terms, 2048), generator=generator)[:, [column]]
    parts = [torch.zeros(1, 1)]
    for term in range(terms):
        parts.append(parts[-1] + x[:, term, None] * w[term])
    estimate = bounds.product(normal(x), normal(w), operands=torch.float32)
    assert estimate.error is not None
    stray = (parts[-1].double() - estimate.value).abs()
    energy = math.sqrt(float((x.double().square() @ w.double().square()).sum()))
    assert max(float(part.abs()) for part in parts) > 2 * float(estimate.value.abs())
    assert float(stray) > 2.0**-23 * 12 / 16 * math.sqrt(terms) * (float(estimate.value.abs()) + energy), (
        "the old bound"
    )
    assert 0.3 * estimate.error < stray < estimate.error


SPREADS = {
    "normal": lambda *shape, seed: randn(*shape, seed=seed),
    "positive": lambda *shape, seed: torch.rand(shape, generator=torch.Generator().manual_seed(seed)),
    "long tail": lambda *shape, seed: torch.exp(randn(*shape, seed=seed)),
    "wide": lambda *shape, seed: randn(*shape, seed=seed).sign() * torch.exp2(6 * randn(*shape, seed=seed + 1)),
}


@pytest.mark.parametrize("spread", ["normal", "positive", "wide"])
@pytest.mark.parametrize("terms", [2, 8, 64, 176])
def test_a_million_sums_one_term_after_the_other_come_near_the_bound_and_not_over(terms: int, spread: str) -> None:
    """Over 1e8 elements of each kind of operand and K: ``tests/gpu/measure_sums.py``."""
    x, w = SPREADS[spread](1000, terms, seed=terms), SPREADS[spread](terms, 1000, seed=terms + 9)
    estimate = bounds.product(normal(x), normal(w), operands=torch.float32)
    total = torch.zeros(1000, 1000)
    for term in range(terms):
        total += x[:, term, None] * w[term]
    assert estimate.error is not None
    used = float(((total.double() - estimate.value).abs() / estimate.error).max())
    assert (0.25 if spread == "wide" else 0.4) < used < (1 if terms == 2 else 0.9)


def test_product_is_no_looser_than_documented() -> None:
    for rows, terms, columns in ((3, 1, 4), (2, 2, 3), (2, 3, 3), (2, 40, 3), (2, 333, 2)):
        x, w = randn(rows, terms, seed=1).double(), randn(terms, columns, seed=2).double()
        estimate = bounds.product(normal(x), normal(w), operands=torch.float32)
        assert estimate.error is not None
        walk, share = {1: (1.0, 0), 2: (2**0.5, 1), 3: (2**0.5 + 3**0.5, 1)}.get(
            terms, (2.75 * terms**0.5, 1.6 * terms**0.5)
        )
        for row in range(rows):
            for column in range(columns):
                products = [float(x[row, t] * w[t, column]) for t in range(terms)]
                energy = math.sqrt(math.fsum(p * p for p in products))
                documented = 2.0**-24 * (walk * energy + share * abs(math.fsum(products)))
                assert float(estimate.value[row, column]) == pytest.approx(math.fsum(products), rel=1e-12)
                assert float(estimate.error[row, column]) == pytest.approx(documented, rel=1e-5)


@pytest.mark.parametrize("terms", [64, 512, 2880])
def test_two_ulps_of_bf16_are_wrong_anywhere(terms: int) -> None:
    x, w = randn(16, terms, seed=3).bfloat16(), randn(terms, 16, seed=4).bfloat16()
    estimate = bounds.product(normal(x), normal(w))
    assert estimate.error is not None
    right = bounds.round_to(torch.bfloat16, estimate.value)
    off = (right + 2 * bounds.ulp(torch.bfloat16, right.abs()) - estimate.value).abs()
    allowed = bounds.tolerance(torch.bfloat16, estimate.value, estimate.error)
    assert ((right - estimate.value).abs() <= allowed).all()
    assert (off > allowed)[estimate.value.abs() > 0.05].all()


def test_bf16_accumulation_and_tf32_operands_are_outside() -> None:
    x, w = randn(16, 256, seed=5), randn(256, 16, seed=6)
    estimate = bounds.product(normal(x), normal(w))
    tf32 = [(part.view(torch.int32) & ~0x1FFF).view(torch.float32) for part in (x, w)]
    assert not holds(tf32[0] @ tf32[1], estimate)
    total = torch.zeros(16, 16)
    for term in range(256):
        total = (total + x[:, term, None] * w[term]).bfloat16().float()
    assert not holds(total, estimate)


def test_product_carries_the_error_of_its_operand() -> None:
    x, w = randn(4, 32, seed=7).double(), randn(32, 4, seed=8).double()
    error = torch.full_like(x, 1e-3)
    estimate = bounds.product(Estimate(x, error), normal(w))
    for sign in (1.0, -1.0):
        assert holds((x + sign * error * w[:, :1].T.sign()) @ w, estimate)
    assert not holds((x + 1.5 * error * w[:, :1].T.sign()) @ w, estimate)


@pytest.mark.parametrize(
    ("device", "fp8", "limit"),
    [
        ("sm_90", False, 2**24),
        ("sm_90", True, 2**11),
        ("sm_89", True, 2**11),
        ("sm_100", True, 2**24),
        ("interpreter", True, 2**24),
    ],
)
def test_exact_products_stop_where_a_sum_could_round(device: str, fp8: bool, limit: int) -> None:
    def estimate(terms: int) -> Estimate:
        with bounds.computed_by(bounds.ARITHMETIC[device]):
            return bounds.product(
                Estimate(torch.full((1, terms), 8.0).double(), None),
                Estimate(torch.ones(terms, 1).double(), None),
                operands=torch.float8_e4m3fn if fp8 else torch.bfloat16,
            )

    assert estimate(limit // 8).exact
    with pytest.raises(ValueError, match="could round"):
        estimate(limit // 8 + 1)


def test_exact_limits_count_in_units() -> None:
    quarter = Estimate(torch.tensor([[0.25]], dtype=torch.float64), None, 0.25)
    large = Estimate(torch.tensor([[2.0**22 + 1]], dtype=torch.float64), None)
    with pytest.raises(ValueError, match="could round"):
        bounds.product(bounds.scale(large, torch.tensor(0.25).double()), quarter)
        bounds.add(bounds.scale(large, torch.tensor(0.125).double()), torch.tensor(2.0**22).double())
    assert bounds.product(quarter, quarter).unit == 0.0625


def test_exact_sums_raise_at_the_limit() -> None:
    x = Estimate(torch.tensor([2.0**23, 2.0**23], dtype=torch.float64), None)
    assert float(bounds.summed(x, 0).value) == 2.0**24
    assert bounds.add(x, torch.tensor(2.0**23).double()).exact
    with pytest.raises(ValueError, match="could round"):
        bounds.add(x, torch.tensor(2.0**23 + 1).double())
    with pytest.raises(ValueError, match="could round"):
        bounds.summed(Estimate(torch.tensor([2.0**24, -1.0]).double(), None), 0)


def test_exact_scale_takes_factors_whose_products_fp32_holds() -> None:
    x = Estimate(torch.tensor([3.0, -5.0]).double(), None)
    scaled = bounds.scale(x, torch.tensor([0.25, 8.0]).double())
    assert scaled.exact and scaled.unit == 0.25 and scaled.value.tolist() == [0.75, -40.0]
    scaled = bounds.scale(x, torch.tensor([0.75 * 0.625]).double())
    assert scaled.exact and scaled.unit == 2.0**-5 and scaled.value.tolist() == [45 / 32, -75 / 32]
    with pytest.raises(ValueError, match="could round"):
        bounds.scale(x, torch.tensor(0.3).double())
    wide = Estimate(torch.tensor([2.0**21 + 1]).double(), None)
    assert bounds.scale(wide, torch.tensor(5.0).double()).exact
    with pytest.raises(ValueError, match="could round"):
        bounds.scale(wide, torch.tensor(11.0).double())
    for factor in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="finite factors other than zero"):
            bounds.scale(x, torch.tensor(factor).double())


def test_empty_exact_operands_have_empty_results() -> None:
    nothing = Estimate(torch.zeros(0, 4).double(), None)
    product = bounds.product(nothing, Estimate(torch.ones(4, 3).double(), None))
    scaled = bounds.scale(product, torch.zeros(0, 1).double())
    assert bounds.summed(bounds.add(scaled, torch.ones(3).double()), 1).value.shape == (0,)
    assert (
        bounds.product(
            Estimate(torch.zeros(2, 0).double(), None), Estimate(torch.zeros(0, 3).double(), None)
        ).value.tolist()
        == [[0.0] * 3] * 2
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_elementwise_bounds_hold_for_fp32(seed: int) -> None:
    x = randn(64, 96, seed=seed) * 10
    near = x * (1 + 2.0**-20)
    error = (near.double() - x.double()).abs()
    term, factor = randn(96, seed=seed + 50) * 10, randn(64, 1, seed=seed + 60)
    start = Estimate(x.double(), error)
    assert holds(near + term, bounds.add(start, term.double()))
    assert holds(near - x, bounds.add(start, -x.double()))  # cancels
    assert holds(near * factor, bounds.scale(start, factor.double()))
    stacked = near.reshape(16, 4, 96)
    assert holds(
        (stacked[:, 2] + stacked[:, 0]) + (stacked[:, 3] + stacked[:, 1]),
        bounds.summed(Estimate(x.double().reshape(16, 4, 96), error.reshape(16, 4, 96)), 1),
    )
    assert not holds(near + term + 2e-4 * x.abs(), bounds.add(start, term.double()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_between_kernels_is_free_except_at_boundaries(dtype: torch.dtype) -> None:
    x = randn(200, 50, seed=1).double()
    error = x.abs() * 2.0**-20
    stored = bounds.rounded(Estimate(x, error), dtype)
    assert stored.error is not None
    for shift in (-1.0, -0.3, 0.0, 1.0):
        assert holds(bounds.round_to(dtype, x + shift * error), stored)
    assert 0 < (stored.error > 0).double().mean() < 0.01
    assert (stored.error <= bounds.ulp(dtype, x.abs() + error)).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("limit", [7.0, 1.5])
def test_swiglu_bound_holds_and_bites(seed: int, limit: float) -> None:
    x = randn(64, 128, seed=seed) * 4
    x[0, :8] = torch.tensor([7.0, -1.0, -30.0, 2.0, 0.0, 0.0, 90.0, -90.0])
    gate, linear = x[:, 0::2].clamp(max=limit), x[:, 1::2].clamp(-limit, limit)
    activated = gate / (1 + torch.exp(-1.702 * gate))
    estimate = bounds.swiglu(normal(x), 1.702, limit)
    assert holds(activated * linear + activated, estimate)
    assert holds(activated * (linear + 1), estimate)
    unclamped = x[:, 0::2] * torch.sigmoid(1.702 * x[:, 0::2]) * (x[:, 1::2] + 1)
    assert not holds(unclamped, estimate)
    assert not holds(gate * torch.sigmoid(1.7 * gate) * (linear + 1), estimate)
    assert not holds((activated * (linear + 1)).bfloat16(), estimate)


def test_swiglu_carries_error() -> None:
    x = randn(64, 64, seed=9)
    error = torch.full((64, 64), 1e-3, dtype=torch.float64)
    estimate = bounds.swiglu(Estimate(x.double(), error), 1.702, 7.0)
    for sign_gate in (1, -1):
        for sign_linear in (1, -1):
            moved = x.double()
            moved[:, 0::2] += sign_gate * 1e-3
            moved[:, 1::2] += sign_linear * 1e-3
            gate, linear = moved[:, 0::2].clamp(max=7.0), moved[:, 1::2].clamp(-7.0, 7.0)
            assert holds(gate * torch.sigmoid(1.702 * gate) * (linear + 1), estimate)


@pytest.mark.parametrize("count", [1, 4, 128])
def test_softmax_bound_holds_and_bites(count: int) -> None:
    for seed in range(8):
        logits = randn(50, count, seed=seed) * 8
        estimate = bounds.softmax(logits.double())
        assert holds(torch.softmax(logits, -1), estimate)
        shifted = torch.exp(logits - logits.amax(-1, keepdim=True))
        assert holds(shifted / shifted.sum(-1, keepdim=True), estimate)
        assert not holds(torch.softmax(logits, -1) * (1 + 2.0**-14), estimate)


@pytest.mark.parametrize("parts", [1, 8])
@pytest.mark.parametrize("count", [130, 3000])
def test_softmax_bound_holds_for_long_rows_taken_in_parts(count: int, parts: int) -> None:
    for seed in range(4):
        logits = randn(8, count, seed=seed) * 4
        logits[0] = -torch.inf
        logits[1, : count // 2] = -torch.inf
        estimate = bounds.softmax(logits.double(), parts=parts)
        maximum, total = torch.full((8, 1), -torch.inf), torch.zeros(8, 1)
        for part in logits.split(-(-count // parts), 1):
            raised = torch.maximum(maximum, part.amax(1, keepdim=True))
            anchor = raised.masked_fill(raised.isneginf(), 0.0)
            total = total * torch.exp(maximum - anchor)
            for column in torch.exp(part - anchor).split(1, 1):
                total = total + column
            maximum = raised
        weights = torch.exp(logits - maximum.masked_fill(maximum.isneginf(), 0.0)) / total.masked_fill(total == 0, 1.0)
        assert holds(weights, estimate)
        assert not estimate.value[0].any() and not estimate.value[1, : count // 2].any()
        assert not holds(weights * (1 + 2.0**-11), estimate)
        assert not holds(weights + 1e-6 * (logits > -torch.inf), estimate)


def test_softmax_of_exact_data_asks_for_powers_of_two() -> None:
    logits = torch.tensor([[5.0, 5.0, -200.0], [-torch.inf] * 3, [1.0, -torch.inf, -300.0]], dtype=torch.float64)
    estimate = bounds.softmax(logits, exact=True)
    assert estimate.exact and estimate.unit == 0.5
    assert estimate.value.tolist() == [[0.5, 0.5, 0.0], [0.0] * 3, [1.0, 0.0, 0.0]]
    assert bounds.softmax(logits[1:2], exact=True).unit == 1.0
    with pytest.raises(ValueError, match="not 1, 2, 4"):
        bounds.softmax(torch.zeros(1, 3).double(), exact=True)
    with pytest.raises(ValueError, match=r"exact data has a weight of 2\^-144.3, over 2\^-200"):
        bounds.softmax(torch.tensor([[0.0, -100.0]]).double(), exact=True)


def test_attention_without_keys_is_zero() -> None:
    q, nothing = torch.ones(2, 4).double(), torch.zeros(0, 4).double()
    visible = torch.zeros(2, 0, dtype=torch.bool)
    for exact in (False, True):
        for sink in (None, 1.0):
            estimate = bounds.attention(
                q, nothing, nothing, visible, scale=0.5, dtype=torch.float32, sink=sink, exact=exact
            )
            assert estimate.value.tolist() == [[0.0] * 4] * 2
            assert estimate.error is None if exact else not estimate.error.any()


@pytest.mark.parametrize("cap", [1.0, 30.0])
def test_attention_with_a_soft_cap_holds_for_fp32_however_its_tanh_is_made_and_bites(cap: float) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(64, 32, generator=generator) * factor for factor in (4.0, 4.0, 1.0))
    seen = torch.ones(64, 64, dtype=torch.bool).tril()
    given = {"scale": 32**-0.5, "dtype": torch.float32}
    estimate = bounds.attention(q.double(), k.double(), v.double(), seen, **given, soft_cap=cap)
    part = (q @ k.T) * 32**-0.5 / cap
    up, down = torch.exp(part), torch.exp(-part)
    for made in ((up - down) / (up + down), 2 * torch.sigmoid(2 * part) - 1, torch.tanh(part)):
        weights = torch.softmax((cap * made).masked_fill(~seen, -torch.inf), -1)
        assert holds(weights @ v, estimate)
    assert not holds(torch.softmax((cap * part).masked_fill(~seen, -torch.inf), -1) @ v, estimate), "no cap"


def cut_sum(x: Tensor, w: Tensor, cores: bounds.Cores) -> Tensor:
    """``x @ w`` of float64 as matrix units make it: the addends of a step are cut off behind the largest."""
    total = torch.zeros(x.shape[0], w.shape[1], dtype=torch.float64)
    for terms in torch.arange(x.shape[1]).split(cores.products):
        addends = torch.cat([total[None], x.T[terms, :, None] * w[terms, None, :]])
        parts = torch.frexp(x)[1].T[terms, :, None] + torch.frexp(w)[1][terms, None, :] - 2
        exponent = torch.cat([torch.frexp(total)[1][None] - 1, parts]).amax(0)
        unit = torch.exp2(exponent.double() - cores.kept)
        total = torch.trunc(addends / unit).sum(0) * unit
        unit = torch.exp2(torch.frexp(total)[1].double() - 1 - cores.stored)
        total = torch.trunc(total / unit) * unit
    return total


@pytest.mark.parametrize("spread", ["normal", "positive", "long tail"])
@pytest.mark.parametrize("terms", [32, 400])
@pytest.mark.parametrize(("device", "fp8"), [("sm_80", False), ("sm_90", False), ("sm_89", True), ("sm_90", True)])
def test_the_bound_holds_for_sums_that_matrix_units_cut_off_and_is_not_loose(
    device: str, fp8: bool, terms: int, spread: str
) -> None:
    dtype = torch.float8_e4m3fn if fp8 else torch.float16
    x, w = (SPREADS[spread](*shape, seed=sum(shape)).to(dtype).double() for shape in ((100, terms), (terms, 100)))
    with bounds.computed_by(bounds.ARITHMETIC[device]):
        estimate = bounds.product(normal(x), normal(w), operands=dtype)
    (cores,) = bounds.ARITHMETIC[device].fp8 if fp8 else bounds.ARITHMETIC[device].half
    assert estimate.error is not None
    used = ((cut_sum(x, w, cores) - estimate.value).abs() / estimate.error).max()
    assert (0.05 if terms == 32 else 0.15) < float(used) < 0.95


def test_each_device_has_the_bounds_of_its_own_fp8_sums() -> None:
    """Uniform errors that passed everywhere under Hopper's bounds: 0.2% with 64 terms, 2% with 2880."""
    least = {}
    for device in ("interpreter", "sm_89", "sm_90", "sm_100", "gfx942"):
        for terms in (64, 2880):
            x, w = (randn(*shape, seed=terms).to(torch.float8_e4m3fn) for shape in ((200, terms), (terms, 200)))
            with bounds.computed_by(bounds.ARITHMETIC[device]):
                estimate = bounds.product(normal(x), normal(w), operands=torch.float8_e4m3fn)
            assert estimate.error is not None
            least[device, terms] = float((estimate.error / estimate.value.abs()).min())
    for terms in (64, 2880):
        assert least["interpreter", terms] == least["gfx942", terms] <= least["sm_100", terms] < 5e-5
        assert 5e-4 < least["sm_90", terms] <= least["sm_89", terms] < 1e-2


def test_a_device_that_is_not_known_has_the_widest_bounds_and_says_so() -> None:
    x, w = randn(20, 2880, seed=1), randn(2880, 20, seed=2)

    def error(device: bounds.Arithmetic) -> Tensor:
        with bounds.computed_by(device):
            made = bounds.product(normal(x), normal(w), operands=torch.float8_e4m3fn).error
        assert made is not None
        return made

    unknown = bounds.arithmetic(["sm_90", "sm_777"])
    assert "sm_777 (not known, so the widest bound of all known GPUs)" in unknown.name
    assert torch.equal(error(unknown), error(bounds.ANY_DEVICE))
    for device in bounds.ARITHMETIC.values():
        assert (error(device) <= error(unknown)).all()
    both = bounds.arithmetic(["sm_90", "sm_100", "sm_90"])
    assert both.name == "sm_100 and sm_90"
    assert torch.equal(
        error(both), torch.maximum(error(bounds.arithmetic(["sm_90"])), error(bounds.arithmetic(["sm_100"])))
    )


@pytest.mark.parametrize("terms", [32, 256, 2880])
def test_the_norm_holds_for_fp32_in_any_order_and_bites(terms: int) -> None:
    generator = torch.Generator().manual_seed(terms)
    x = (torch.randn((64, terms), generator=generator) * 3).float()
    weight = 1 + torch.randn(terms, generator=generator).float() / 10
    estimate = bounds.rms_norm(x.double(), weight.double(), 1e-5)
    assert estimate.error is not None
    in_turn = torch.zeros(64)
    for column in range(terms):
        in_turn = in_turn + x[:, column] * x[:, column]
    for squares in (in_turn, x.square().sum(1)):
        got = x * torch.rsqrt(squares / terms + 1e-5)[:, None] * weight
        assert ((got.double() - estimate.value).abs() <= estimate.error).all()
    without = x * torch.rsqrt(x.square().sum(1) / (terms - 1) + 1e-5)[:, None] * weight
    assert ((without.double() - estimate.value).abs() > estimate.error).all()


def test_rope_holds_for_fp32_and_bites() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((50, 64), generator=generator)
    angles = torch.arange(50)[:, None] * torch.rand(32, generator=generator)
    cos, sin = angles.cos(), angles.sin()
    estimate = bounds.rope(x.double(), cos.double(), sin.double())
    assert estimate.error is not None
    first, second = x.chunk(2, -1)
    got = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    assert ((got.double() - estimate.value).abs() <= estimate.error).all()
    assert torch.allclose(estimate.value.norm(dim=1), x.double().norm(dim=1), rtol=1e-6), "turning keeps the length"
    late = bounds.rope(x[1:].double(), cos[:-1].double(), sin[:-1].double()).value
    assert ((late - estimate.value[1:]).abs() > estimate.error[1:]).double().mean() > 0.9


def test_a_product_of_two_estimates_carries_both_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400, generator=generator).double() for _ in range(2))
    left, right = Estimate(x, torch.full_like(x, 0.01)), Estimate(y, torch.full_like(y, 0.02))
    got = bounds.times(left, right)
    assert got.error is not None
    for a, b in ((0.01, 0.02), (-0.01, 0.02), (0.01, -0.02), (-0.01, -0.02)):
        assert (((x + a) * (y + b) - got.value).abs() <= got.error).all()
    assert (got.error < 1.1 * (0.01 * y.abs() + 0.02 * x.abs()) + 3e-4).all()


def test_spread_is_six_deviations_of_what_the_members_differ_by() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn((3, 500), generator=generator).double()
    size = torch.tensor([1.0, 0.1, 0.0]).double()[:, None]
    members = value + size * torch.randn((8, 3, 500), generator=generator).double()
    got = bounds.spread(value, members)
    assert got.error is not None and got.error.shape == value.shape
    assert torch.allclose(got.error, (6 * size).expand(value.shape), rtol=0.05)


def few_values(*shape: int) -> Tensor:
    return torch.where(torch.rand(shape, generator=torch.Generator().manual_seed(shape[0])) > 0.5, 0.1, 0.3)


NOT_RANDOM = {
    "constant": lambda k: (torch.full((20, k), 0.1), torch.full((k, 20), 0.3)),
    "two values": lambda k: (few_values(100, k), few_values(k, 100) + 0.6),
    "sorted": lambda k: (randn(50, k, seed=k).sort(1).values, torch.full((k, 20), 0.3)),
    "a wave": lambda k: (torch.sin(torch.arange(k) * (2 * math.pi / k)).expand(20, k), torch.full((k, 20), 0.7)),
    "far from zero": lambda k: (randn(100, k, seed=1) + 5, randn(k, 100, seed=2) + 5),
    "long tails": lambda k: (torch.exp(2 * randn(100, k, seed=1)), torch.exp(2 * randn(k, 100, seed=2))),
}


@pytest.mark.parametrize("terms", [16, 48, 64, 512, 2880])
@pytest.mark.parametrize("kind", NOT_RANDOM)
def test_the_bound_holds_for_operands_that_are_not_drawn_at_random(kind: str, terms: int) -> None:
    """Roundings of terms that are alike add up, and partial sums of terms in some order grow beyond their end."""
    x, w = NOT_RANDOM[kind](terms)
    estimate = bounds.product(normal(x), normal(w), operands=torch.float32)
    assert estimate.error is not None
    for order in (torch.arange(terms), torch.randperm(terms, generator=torch.Generator().manual_seed(0))):
        stray = (in_order(x, w, order, terms).double() - estimate.value).abs()
        assert (stray <= estimate.error).all()


def test_random_operands_are_never_taken_for_others() -> None:
    for terms in (32, 64, 512, 2880):
        for seed in range(5):
            x, w = randn(60, terms, seed=seed).double(), randn(terms, 50, seed=seed + 50).double()
            estimate = bounds.product(normal(x), normal(w), operands=torch.float32)
            energy = torch.sqrt(x.square() @ w.square())
            assert estimate.error is not None
            assert torch.allclose(estimate.error, bounds.summing(terms, estimate.value, energy), rtol=1e-5)


STORED = torch.bfloat16


def held(value: Tensor) -> Tensor:
    return value.to(STORED).float()


def within(got: Tensor, estimate: Estimate) -> Tensor:
    assert estimate.error is not None
    return (held(got).double() - estimate.value).abs() <= bounds.tolerance(STORED, estimate.value, estimate.error)


def test_a_norm_whose_steps_may_be_stored_holds_for_all_ways_to_store_them_and_bites() -> None:
    generator = torch.Generator().manual_seed(0)
    whole, weight = torch.randn((64, 320), generator=generator), held(1 + torch.randn(320, generator=generator) / 10)
    x = held(whole)
    estimate = bounds.rms_norm(x.double(), weight.double(), 1e-5, stored=STORED)
    for given in (x, whole):  # the sum of a residual, and the same before it is stored
        normed = given * torch.rsqrt(given.square().mean(1, keepdim=True) + 1e-5)
        assert within(normed * weight, estimate).all() and within(held(normed) * weight, estimate).all()
    assert (~within(normed, estimate)).double().mean() > 0.7, "without its weight"
    quiet = bounds.rms_norm(x.double() / 256, weight.double(), 1e-5, stored=STORED)
    without = x * torch.rsqrt(x.square().mean(1, keepdim=True)) * weight
    assert (~within(without, quiet)).double().mean() > 0.99, "without epsilon"


def test_rope_whose_steps_may_be_stored_holds_for_all_ways_to_store_them_and_bites() -> None:
    generator = torch.Generator().manual_seed(0)
    x = held(torch.randn((200, 64), generator=generator))
    angles = torch.arange(200)[:, None] * torch.rand(32, generator=generator)
    cos, sin = angles.double().cos() * 1.35, angles.double().sin() * 1.35
    estimate = bounds.rope(x.double(), cos, sin, stored=STORED, angle=torch.arange(200)[:, None].double())
    first, second = x.chunk(2, -1)
    for table in (held, torch.Tensor.float):
        for step in (held, torch.Tensor.float):
            c, s = table(cos.float()), table(sin.float())
            got = torch.cat([step(first * c) - step(second * s), step(second * c) + step(first * s)], -1)
            assert within(got, estimate).all()
    assert (~within(got[1:], Estimate(estimate.value[:-1], estimate.error[:-1]))).double().mean() > 0.9  # type: ignore[index]
    assert (~within(got / 1.35, estimate)).double().mean() > 0.9, "without the size of its cosines"


def test_attention_whose_scores_are_stored_holds_and_bites() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (held(torch.randn((40, 64), generator=generator)) for _ in range(3))
    visible = torch.ones(40, 40).tril().bool()
    options = {"scale": 0.11, "dtype": STORED, "sink": 0.5}
    estimate = bounds.attention(q.double(), k.double(), v.double(), visible, **options, stored=True)  # type: ignore[arg-type]
    scores = held(held(held(q @ k.T) * 0.11).masked_fill(~visible, -1e30))
    logits = torch.cat([scores, torch.full((40, 1), 0.5)], 1)
    logits = held(logits - logits.amax(1, keepdim=True))
    weights = held(logits.softmax(1))
    assert within(weights[:, :-1] @ v, estimate).all()
    assert (~within(logits[:, :-1].softmax(1) @ v, estimate)).double().mean() > 0.2, "without the sink"
    plain = bounds.attention(q.double(), k.double(), v.double(), visible, **options)  # type: ignore[arg-type]
    assert not within(weights[:, :-1] @ v, plain).all(), "what is stored must be said"


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_sums_over_ranks_in_any_order_stay_within_their_bound(ranks: int) -> None:
    """Rounded to bf16 after each addition, or once at the end; a part that is missing does not."""
    generator = torch.Generator().manual_seed(ranks)
    parts = torch.randn((ranks, 4000), generator=generator).to(torch.bfloat16)
    expected = bounds.reduced(parts.double(), 0, torch.bfloat16)
    assert expected.error is not None
    allowed = bounds.tolerance(torch.bfloat16, expected.value, expected.error)
    for _ in range(8):
        order = parts[torch.randperm(ranks, generator=generator)]
        rounded = order[0]
        for part in order[1:]:
            rounded = rounded + part
        for total in (rounded, order.float().sum(0).to(torch.bfloat16)):
            assert ((total.double() - expected.value).abs() <= allowed).all()
    missing = parts[1:].double().sum(0) - expected.value
    assert (missing.abs() > allowed).double().mean() > 0.9


def test_a_steep_swiglu_of_whole_numbers_is_a_ramp() -> None:
    whole = torch.arange(-9, 10).double()
    both = torch.stack([whole.repeat_interleave(19), whole.repeat(19)], -1).flatten()
    ramp = bounds.ramp(bounds.Estimate(both, None), 2.0)
    gate, linear = both[0::2].float().clamp(max=2.0), both[1::2].float().clamp(-2.0, 2.0)
    in_fp32 = torch.addcmul(s := gate / (1 + torch.exp(-bounds.STEEP * gate)), s, linear)
    assert (
        ramp.exact and torch.equal(ramp.value, in_fp32.double()) and in_fp32.unique().tolist() == [-2, -1, *range(5), 6]
    )
    with pytest.raises(ValueError, match="whole"):
        bounds.ramp(bounds.Estimate(both, None, 0.5), 2.0)
    with pytest.raises(ValueError, match="exact"):
        bounds.ramp(bounds.Estimate(both, torch.zeros_like(both)), 2.0)


@pytest.mark.parametrize("parts", [2, 5, 16])
def test_a_product_whose_parts_are_stored_holds_for_any_number_of_them_and_bites(parts: int) -> None:
    generator = torch.Generator().manual_seed(parts)
    x, w = held(torch.randn((64, 320), generator=generator)), held(torch.randn((320, 96), generator=generator))
    total = torch.zeros(64, 96)
    for terms in torch.arange(320).chunk(parts):
        total = total + held(x[:, terms] @ w[terms])
    plain = bounds.product(*(Estimate(each.double(), torch.zeros_like(each).double()) for each in (x, w)))
    assert plain.error is not None
    estimate = Estimate(plain.value, plain.error + bounds.in_parts(x.double(), w.double(), STORED))
    assert within(total, estimate).all()
    assert not within(total, plain).all(), "what is stored must be said"
    assert (~within(x[:, :-2] @ w[:-2], estimate)).double().mean() > 0.7, "two terms that are left out show"
