"""Operands against the formats' definitions, read from their bits one code at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from gpucheck import checks
from gpucheck.checks import operands
from gpucheck.checks.matmul import EXACT_TERMS, WEIGHTS
from gpucheck.verify import bounds
from gpucheck.verify.judge import judge

E2M1 = {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 3.0, 6: 4.0, 7: 6.0}


def fp4(code: int) -> float:
    """Sign, two exponent bits of bias 1, one mantissa bit."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    size = mantissa * 0.5 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if sign else size


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def test_the_oracle_is_the_table_of_the_standard() -> None:
    assert {code: fp4(code) for code in range(8)} == E2M1


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_fp4_decodes_low_nibble_first_along_its_axis(axis: int) -> None:
    codes = torch.randint(0, 256, (3, 4, 5), generator=rng(), dtype=torch.uint8)
    decoded = operands.decode_fp4(codes, axis)
    shape = [3, 4, 5]
    shape[axis] *= 2
    assert list(decoded.shape) == shape and decoded.dtype == torch.float64
    for place in torch.ones(shape).nonzero().tolist():
        source = list(place)
        source[axis] //= 2
        byte = int(codes[tuple(source)])
        code = byte >> 4 if place[axis] % 2 else byte & 15
        assert float(decoded[tuple(place)]) == fp4(code)


def test_fp4_decodes_every_byte_and_strided_codes() -> None:
    codes = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    expected = [[fp4(code) for byte in row for code in (byte & 15, byte >> 4)] for row in codes.tolist()]
    assert operands.decode_fp4(codes, 1).tolist() == expected
    assert operands.decode_fp4(codes.T.contiguous().T, 1).tolist() == expected


def test_every_scale_is_a_power_of_two() -> None:
    scales = torch.arange(255, dtype=torch.uint8).reshape(5, 51)
    assert operands.decode_scales(scales).flatten().tolist() == [math.ldexp(1.0, code - 127) for code in range(255)]


@pytest.mark.parametrize("kind", ["mxfp4", "mxfp8_e4m3", "mxfp8_e5m2"])
@pytest.mark.parametrize("terms", [64, 48, 160])
def test_weights_decode_element_by_element(kind: str, terms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "DECODED_AT_ONCE", 3 * 16 * 3)  # three blocks of 32
    made = operands.weights(kind, (2, terms, 3), "normal", rng())
    values, scales = made["w"], made["w_scale"]
    decoded = operands.decode_weight(kind, values.clone(), scales)
    assert decoded.shape == (2, terms, 3)
    for batch, term, column in torch.ones(2, terms, 3).nonzero().tolist():
        if kind == "mxfp4":
            byte = int(values[batch, term // 2, column])
            plain = fp4(byte >> 4 if term % 2 else byte & 15)
        else:
            plain = float(values[batch, term, column].float())
        scale = math.ldexp(1.0, int(scales[batch, term // 32, column]) - 127)
        assert float(decoded[batch, term, column]) == plain * scale


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("kind_of_data", ["exact", "normal"])
def test_decoding_leaves_the_operands_alone(kind: str, kind_of_data: str) -> None:
    made = operands.weights(kind, (64, 8), kind_of_data, rng())
    before = {name: tensor.clone() for name, tensor in made.items()}
    operands.decode_weight(kind, made["w"], made.get("w_scale"))
    assert all(torch.equal(before[name].view(torch.uint8), made[name].view(torch.uint8)) for name in before)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("terms", [32, 96, 2048])
def test_exact_data_sums_to_the_same_bits_in_any_order(kind: str, terms: int) -> None:
    generator = rng(terms)
    x_kind = "bf16" if kind.startswith("mx") else kind
    x = operands.activations(x_kind, (8, terms), "exact", generator)
    made = operands.weights(kind, (terms, 8), "exact", generator)
    w = operands.decode_weight(kind, made["w"], made.get("w_scale"))
    exact = x.double() @ w
    assert torch.equal(x.double(), x.double().round()) and (x != 0).all()
    for chunk in (1, 7, 32):
        order = torch.randperm(terms, generator=generator)
        total = torch.zeros(8, 8)
        for part in order.split(chunk):
            total = total + x[:, part].float() @ w[part].float()
        assert torch.equal(total.double(), exact)
    largest = (x.double().abs() @ w.abs()).max() / operands.weight_unit(kind)
    assert largest <= (bounds.EXACT_LIMIT_FP8 if kind.startswith("fp8") else bounds.EXACT_LIMIT)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_every_exact_weight_is_a_multiple_of_its_unit(kind: str) -> None:
    made = operands.weights(kind, (256, 64), "exact", rng())
    units = operands.decode_weight(kind, made["w"], made.get("w_scale")) / operands.weight_unit(kind)
    assert torch.equal(units, units.round()) and (units % 2 == 1).any()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_largest_k_of_exact_data_is_safe_whatever_is_drawn_and_no_smaller(kind: str) -> None:
    """The limit of a check is the limit of its bound: a plan that passes never meets a reference that refuses."""
    generator = rng()
    terms = EXACT_TERMS[kind]
    x_kind = "bf16" if kind.startswith("mx") else kind
    x = operands.activations(x_kind, (1, terms), "exact", generator).float().abs().max()
    made = operands.weights(kind, (terms, 2), "exact", generator)
    w = operands.decode_weight(kind, made["w"], made.get("w_scale")).abs().max()
    limit = bounds.EXACT_LIMIT_FP8 if kind.startswith("fp8") else bounds.EXACT_LIMIT
    assert float(x) * float(w) * terms / operands.weight_unit(kind) <= limit
    if kind != "fp32":
        assert float(x) * float(w) * (terms + 2) / operands.weight_unit(kind) > limit


def test_exact_fp32_activations_need_more_bits_than_tf32() -> None:
    x = operands.activations("fp32", (64, 64), "exact", rng())
    tf32 = (x.view(torch.int32) & ~0x1FFF).view(torch.float32)
    assert (tf32 != x).float().mean() > 0.4 and x.abs().max() <= operands.FP32_WIDE


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2"])
def test_activations_have_their_dtype_and_both_signs(kind: str) -> None:
    for kind_of_data in ("exact", "normal"):
        x = operands.activations(kind, (64, 64), kind_of_data, rng())
        assert x.dtype == operands.DTYPES[kind] and (x.float() > 0).any() and (x.float() < 0).any()
        assert torch.isfinite(x.float()).all()


def test_signed_integers_stay_in_their_range() -> None:
    values = operands.signed_integers((1000,), 2, 5, rng())
    assert sorted(set(values.tolist())) == [-5, -4, -3, -2, 2, 3, 4, 5]


@pytest.mark.parametrize(("low", "high"), [(0, 8), (1, 1), (1, 127), (1, 128), (2049, 4095)])
def test_signed_integers_are_those_of_the_seed_whatever_holds_them_meanwhile(low: int, high: int) -> None:
    """Records of other versions and of other ranks name inputs by their bytes."""
    one, other = rng(), rng()
    expected = torch.randint(low, high + 1, (7, 33), generator=one) * (
        torch.randint(0, 2, (7, 33), generator=one) * 2 - 1
    )
    values = operands.signed_integers((7, 33), low, high, other)
    assert torch.equal(values.view(torch.int32), expected.float().view(torch.int32))
    assert torch.equal(one.get_state(), other.get_state()), "what is drawn next is the same too"


def test_estimates_start_without_error() -> None:
    exact = operands.as_estimate(torch.ones(2), "exact", 0.5)
    assert exact.error is None and exact.unit == 0.5 and exact.value.dtype == torch.float64
    normal = operands.as_estimate(torch.ones(2), "normal")
    assert normal.error is not None and normal.error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(64, 24), (5, 8, 16)])
def test_rows_lie_as_far_apart_as_asked(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=rng()).bfloat16()
    far = operands.far_apart(tensor, 10_000)
    assert torch.equal(far, tensor) and far[0].is_contiguous() and far.stride(0) % operands.MARGIN == 0
    assert 10_000 <= (shape[0] - 1) * far.stride(0) < 10_000 + 16 * shape[0]
    assert operands.REACH > 2**31 - 1, "the last row begins beyond what 32 bits with a sign can say"


def test_what_is_cut_out_of_a_wider_tensor_has_its_values_and_no_neighbours() -> None:
    tensor = torch.randn((3, 5, 20), generator=rng()).to(torch.float8_e4m3fn)
    view = operands.within(tensor)
    assert torch.equal(view.float(), tensor.float())
    assert (view.stride(), view.storage_offset()) == ((5 * 64, 64, 1), 16)


@pytest.mark.parametrize("kind", ["fp8_e4m3", "fp8_e5m2"])
def test_an_error_of_an_fp8_scale_shows_in_exact_data(kind: str) -> None:
    """Two scales that are powers of two, one the other's inverse, could both be left out unseen."""
    check = checks.load("matmul")
    case = check.spec.case({"m": 16, "n": 24, "k": 64, "weight": kind, "out": "bf16"}, "exact", seed=2)
    inputs = check.inputs(case, rng())
    expected = check.reference(case, inputs)
    sums = inputs["x"].float() @ inputs["w"].float()

    def right(x_scale: float, w_scale: float) -> bool:
        output = bounds.round_to(torch.bfloat16, (sums * (x_scale * w_scale)).double()).bfloat16()
        return not judge({"y": output}, expected, {}).mismatches

    x_scale, w_scale = (float(inputs[name]) for name in ("x_scale", "w_scale"))
    assert right(x_scale, w_scale)
    for wrong in ((1.0, 1.0), (x_scale, 1.0), (1.0, w_scale), (x_scale * 1.01, w_scale), (x_scale, w_scale / 2)):
        assert not right(*wrong)
