"""What each rank holds of an expert block: the parts are the whole, and a rank with another's part is told from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpucheck.checks import caller_faults
from gpucheck.checks.block_parts import parts
from gpucheck.checks.gpt_oss_block import block_reference
from gpucheck.checks.vllm_moe import VllmMoe
from gpucheck.model.case import Case
from gpucheck.verify.judge import accepted

CHECK = VllmMoe()

pytestmark = pytest.mark.usefixtures("one_thread")


def shared(**params: int) -> tuple[Case, dict[str, torch.Tensor]]:
    """A case whose width no number of ranks divides into whole blocks, and its inputs."""
    sizes = {"m": 5, "hidden": 320, "intermediate": 288, "experts": 6, "top_k": 3}
    case = CHECK.spec.case({**CHECK.spec.defaults, **sizes, **params}, "normal", 3)
    return case, CHECK.inputs(case, torch.Generator().manual_seed(case.input_seed))


@pytest.mark.parametrize(("tp", "share", "last"), [(1, 2880, 2880), (2, 1440, 1440), (4, 736, 672), (8, 384, 192)])
def test_tensor_parallel_ranks_of_gpt_oss_have_whole_blocks_and_the_last_one_fewer(
    tp: int, share: int, last: int
) -> None:
    found = parts({"intermediate": 2880, "experts": 32, "tp": tp})
    assert [part.index for part in found] == list(range(tp))
    bounds = [(part.columns.start, part.columns.stop) for part in found]
    assert bounds[0] == (0, share) and bounds[-1] == (2880 - last, 2880)
    assert all(before[1] == after[0] for before, after in zip(bounds, bounds[1:], strict=False))
    assert [part.bias for part in found] == [True] + [False] * (tp - 1), "the second bias is added once"


def test_expert_parallel_ranks_have_experts_in_order_and_each_their_biases() -> None:
    found = parts({"intermediate": 2880, "experts": 32, "ep": 4})
    assert [(part.experts.start, part.experts.stop) for part in found] == [(0, 8), (8, 16), (16, 24), (24, 32)]
    assert all(part.columns == slice(0, 2880) and part.bias for part in found)


@pytest.mark.parametrize("params", [{"tp": 2}, {"tp": 3}, {"ep": 2}, {"ep": 6}], ids=str)
def test_the_outputs_of_all_ranks_add_up_to_the_block_on_one_rank(params: dict[str, int]) -> None:
    case, inputs = shared(**params)
    whole = block_reference(case, inputs)["y"].alternatives[0]
    each = [block_reference(case, inputs, part=part)["y"].alternatives[0] for part in parts(case.params)]
    assert len(each) == next(iter(params.values())) and all(bool(part.value.any()) for part in each)
    assert torch.allclose(torch.stack([part.value for part in each]).sum(0), whole.value, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("params", [{"tp": 2}, {"ep": 2}], ids=str)
def test_a_part_and_the_sum_are_outputs_of_a_case_with_bounds_of_their_own(params: dict[str, int]) -> None:
    case, inputs = shared(**params)
    (group,) = params
    expected, axes = CHECK.reference(case, inputs), CHECK.axes(case, inputs)
    assert list(expected) == ["router_logits", f"y_{group}0", f"y_{group}1", "y"] and set(axes) == set(expected)
    each = [expected[f"y_{group}{rank}"].estimate.value.bfloat16().float() for rank in range(2)]
    assert accepted(each[0] + each[1], expected["y"]) is not None
    assert accepted(each[0] + each[0], expected["y"]) is None, "one rank counted twice, the other left out"
    owned = [{*axes[f"y_{group}{rank}"].owners["expert"].flatten().tolist()} - {-1} for rank in range(2)]
    assert owned[0] & owned[1] == (set() if group == "ep" else owned[0])


@pytest.mark.parametrize("params", [{"tp": 3}, {"ep": 3}], ids=str)
@pytest.mark.parametrize("rank", [0, 1])
def test_each_fault_of_ranks_that_share_a_block_is_told_from_all_others(params: dict[str, int], rank: int) -> None:
    case, inputs = shared(**params)
    part = parts(case.params)[rank]
    expected = CHECK.reference(case, inputs)[part.output]
    found = list(caller_faults.sharing_faults(case, part))
    assert len(found) == 3, "two other ranks' parts, and the second bias"
    for layer, fault, change in found:
        output = block_reference(case, inputs, change, part)["y"].estimate.value.to(torch.bfloat16)
        said = caller_faults.explanation(case, inputs, output, expected, part)
        assert said.startswith(f"{layer}: {fault}"), said


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"tp": 0}, "tp must be at least 1"),
        ({"tp": 2, "ep": 2}, "one of tp and ep must be 1"),
        ({"ep": 4}, "ep must divide the experts"),
        ({"tp": 7}, "tp the intermediate size"),
        ({"tp": 8, "intermediate": 288}, "with tp 8 a rank would have no block of 32 columns of 288"),
        ({"tp": 3}, None),
    ],
    ids=str,
)
def test_ranks_that_cannot_share_a_block_are_refused_while_planning(params: dict[str, Any], words: str | None) -> None:
    given = {**CHECK.spec.defaults, "hidden": 320, "intermediate": 288, "experts": 6, **params}
    said = CHECK.reason_against(given, "normal")
    assert said is None if words is None else words in str(said)
