from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from gpucheck.triton_hooks.interpreter import number_formats

FLOAT8 = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}


def nearest_even(value: float, candidates: list[tuple[float, int]]) -> float:
    """The candidate closest to ``value``; of two the one with an even pattern."""
    return min(candidates, key=lambda candidate: (abs(candidate[0] - value), candidate[1] & 1))[0]


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_rounds_to_the_nearest_value_and_saturates(name: str) -> None:
    table = number_formats.decode(np.arange(128, dtype=np.uint8), name)
    candidates = [(float(value), code) for code, value in enumerate(table) if np.isfinite(value)]
    values = [value for value, _ in candidates]
    midpoints = [(low + high) / 2 for low, high in pairwise(values)]
    wanted = [nearest_even(value, candidates) for value in midpoints]
    assert number_formats.decode(number_formats.encode(np.array(midpoints), name), name).tolist() == wanted
    assert number_formats.decode(number_formats.encode(np.array([1e9, -np.inf]), name), name).tolist() == [
        values[-1],
        -values[-1],
    ]
    assert np.isnan(number_formats.decode(number_formats.encode(np.array([np.nan]), name), name)).all()


def test_bf16_equals_torch_on_ties_neighbours_and_special_values() -> None:
    bits = np.arange(0, 1 << 32, 0x4001, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(0x3F00, 0x4100, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    values = np.concatenate([bits, ties, ties + np.uint32(1), ties - np.uint32(1)]).view(np.float32)
    ours = torch.from_numpy(number_formats.decode(number_formats.encode(values, "bf16"), "bf16").copy())
    torch.testing.assert_close(
        ours, torch.from_numpy(values).to(torch.bfloat16).float(), rtol=0, atol=0, equal_nan=True
    )


def test_rounding_toward_zero_never_grows_a_magnitude() -> None:
    values = np.array([1.999, -1.999, 3.0, 1e-3], dtype=np.float32)
    bits = number_formats.toward_zero(values, number_formats.encode(values, "bf16"), "bf16")
    rounded = number_formats.decode(bits, "bf16")
    assert (np.abs(rounded) <= np.abs(values)).all()
    assert rounded[2] == 3.0
    assert rounded[0] == 1.9921875


def test_e2m1_low_nibble_comes_first_along_the_chosen_axis() -> None:
    codes = np.array([[0x21, 0xF7]], dtype=np.uint8)
    assert number_formats.unpack_e2m1(codes, -1).tolist() == [[0.5, 1.0, 6.0, -6.0]]
    assert number_formats.unpack_e2m1(codes, 0).tolist() == [[0.5, 6.0], [1.0, -6.0]]


def test_e8m0_scales_are_powers_of_two() -> None:
    assert number_formats.decode_e8m0(np.array([126, 127, 130], dtype=np.uint8)).tolist() == [0.5, 1.0, 8.0]
