from __future__ import annotations

import numpy as np
import pytest
import triton

from gpucheck.triton_hooks.interpreter import number_formats
from gpucheck.triton_hooks.interpreter.assembly import find_first_set, operation_of

UNPACK = """{
    and.b32 $0, $4, 0b10000001110000001000000111000000;
    mul.bf16x2 $3, $3, bias;
}"""
UNPACK_SCALE = "prmt.b32 $0, $2, 0, 0x5140; shl.b32 $0, $0, 7; prmt.b32 $1, $2, 0, 0x7362; shl.b32 $1, $1, 7;"


def float32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_exp2_flushes_subnormal_numbers() -> None:
    exp2 = operation_of("ex2.approx.ftz.f32 $0, $1;")
    assert exp2(float32(3, -1, 0, -126, -127, 2.0**-130)).tolist() == [8, 0.5, 1, 2.0**-126, 0, 1]


@pytest.mark.parametrize(
    ("instruction", "rounded"), [("cvt.rna.tf32.f32", [1 + 2**-10, 1 + 2**-9]), ("cvt.rn.tf32.f32", [1, 1 + 2**-9])]
)
def test_tf32_ties(instruction: str, rounded: list[float]) -> None:
    tie_after_even, tie_after_odd = 1 + 2**-11, 1 + 2**-10 + 2**-11
    values = operation_of(f"{instruction} $0, $1;")(float32(tie_after_even, tie_after_odd, -tie_after_odd))
    assert values.tolist() == [*rounded, -rounded[1]]


def test_the_first_bit_that_is_set_counts_from_one() -> None:
    numbers = np.array([0, 1, 2, 12, -1, 2**30, -(2**31), 3 << 7], dtype=np.int32)
    found = find_first_set(numbers)
    assert found.tolist() == [0, 1, 2, 3, 1, 31, 32, 8] and found.dtype == np.int32


def test_tf32_keeps_what_it_can_hold() -> None:
    values = float32(0, -0.0, 1 + 2**-10, 448, np.inf, -np.inf, np.nan)
    for instruction in ("cvt.rna.tf32.f32", "cvt.rn.tf32.f32"):
        found = operation_of(f"{instruction} $0, $1;")(values)
        assert np.array_equal(found, values, equal_nan=True)
        assert np.signbit(found[1])


def test_extrema_of_magnitudes() -> None:
    left, right = float32(-3, -3, 2, np.nan), float32(1, -1, -5, 1)
    largest = operation_of("{\n    max.NaN.xorsign.abs.f32 $0, $1, $2;\n    }")(left, right)
    smallest = operation_of("min.NaN.xorsign.abs.f32 $0, $1, $2;")(left, right)
    assert largest[:3].tolist() == [-3, 3, -5]
    assert smallest[:3].tolist() == [-1, 1, -2]
    assert np.isnan(largest[3]) and np.isnan(smallest[3])


def test_product_of_bf16_rounds_once() -> None:
    left, right = float32(1.0078125, 3), float32(1.0078125, -0.5)
    found = operation_of("mul.bf16x2 $0, $1, $2;")(
        number_formats.encode(left, "bf16"), number_formats.encode(right, "bf16")
    )
    assert number_formats.decode(found, "bf16").tolist() == [1.015625, -1.5]


def test_each_e2m1_value_of_a_swizzled_word() -> None:
    """Eight codes are spread over the 32 bits as the library's layout does it."""
    unpack = operation_of(UNPACK)

    def spread(code: int) -> int:
        return (code & 8) << 12 | (code & 7) << 6

    for position in range(8):
        for code in range(16):
            pair, half = divmod(position, 2)
            bits = spread(code)
            if pair == 3:
                bits = (code & 8) << 11 | (code & 6) << 9 | (code & 1) << 13
            word = np.array([bits << 16 * half >> (3 * pair if pair < 3 else 0)], dtype=np.uint32)
            results = unpack(word.view(np.uint8)[None])
            numbers = np.concatenate([number_formats.decode(result, "bf16") for result in results], axis=1)[0]
            expected = np.zeros(8, dtype=np.float32)
            expected[position] = number_formats.E2M1[code]
            assert np.array_equal(numbers, expected), (position, code)


def test_scales_become_powers_of_two() -> None:
    found = operation_of(UNPACK_SCALE)(np.array([127, 128, 120, 255], dtype=np.uint8))
    assert number_formats.decode(found, "bf16").tolist() == [1, 2, 2.0**-7, np.inf]


def test_unknown_assembly_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"cvt\.rn\.satfinite"):
        operation_of("cvt.rn.satfinite.e2m1x2.f32 r, $1, $2;")


@pytest.mark.skipif(not hasattr(triton, "aggregate"), reason="this Triton has no aggregates")
def test_fields_of_aggregates_are_plain() -> None:
    @triton.aggregate
    class Pair:
        first: object
        second: triton.language.constexpr

    pair = Pair(1, None)
    assert pair.first == 1
    assert pair.second is None


def test_lists_and_shapes_are_added() -> None:
    language = triton.language
    assert list(([1] + language.core.tuple([language.constexpr(4)])).values) == [1, 4]
