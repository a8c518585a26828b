from __future__ import annotations

import torch

from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Axes, Expected
from gpucheck.verify.judge import judge
from gpucheck.verify.worst_elements import MOST_ELEMENTS, worst_elements

AXES = Axes(("row", "column"), (4, 8))


def test_exact_data_names_bits_ulps_and_tile() -> None:
    value = torch.arange(1.0, 129.0, dtype=torch.float64).reshape(8, 16)
    output = value.to(torch.bfloat16)
    output[5, 9] = 2 * output[5, 9]
    output[0, 0] = float("nan")
    first, second = worst_elements(output, Expected(Estimate(value, None), torch.bfloat16), AXES)
    assert (first["index"], first["got"], first["ulps"], first["tile"]) == ([0, 0], None, None, [0, 0])
    assert (second["index"], second["expected"], second["got"], second["tile"]) == ([5, 9], 90.0, 180.0, [1, 1])
    assert (second["expected_bits"], second["got_bits"]) == ("0x42b4", "0x4334")
    assert (second["ulps"], second["bound"]) == (180, 0)


def test_within_bounds_the_worst_is_furthest_beyond_its_own_and_agrees_with_the_judge() -> None:
    value = torch.tensor([[1.0, 100.0, 3.0]], dtype=torch.float64)
    reference = Expected(Estimate(value, torch.full_like(value, 1e-3)), torch.float32)
    output = torch.tensor([[1.01, 100.02, 3.0005]])
    found = worst_elements(output, reference, AXES)
    assert [element["index"] for element in found] == [[0, 1], [0, 0]]
    (mismatch,) = judge({"y": output}, {"y": reference}, {"y": AXES}).mismatches
    assert mismatch.worst == found[0]["index"] and mismatch.bound == found[0]["bound"]
    assert mismatch.ulps == found[0]["ulps"]


def test_the_list_is_cut_and_right_outputs_have_none() -> None:
    value = torch.zeros(8, 16, dtype=torch.float64)
    reference = Expected(Estimate(value, None), torch.int32)
    assert len(worst_elements(torch.ones(8, 16, dtype=torch.int32), reference, AXES)) == MOST_ELEMENTS
    assert worst_elements(torch.zeros(8, 16, dtype=torch.int32), reference, AXES) == []


def test_the_alternative_that_the_output_is_closest_to_counts() -> None:
    zeros, ones = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
    reference = Expected(Estimate(zeros, None), torch.int32, (Estimate(ones, None),))
    (element,) = worst_elements(torch.tensor([[1, 1, 0, 1]], dtype=torch.int32), reference, AXES)
    assert (element["index"], element["expected"]) == ([0, 2], 1.0)
