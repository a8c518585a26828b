"""A wrong expert block is explained by the fault that gives exactly its outputs, and by no other."""

from __future__ import annotations

import pytest
import torch

from gpucheck.checks import caller_faults
from gpucheck.checks.gpt_oss_block import block_reference
from gpucheck.checks.vllm_moe import VllmMoe
from gpucheck.model.case import Case
from gpucheck.verify.judge import judge

CHECK = VllmMoe()
CASE = CHECK.spec.case({**CHECK.spec.defaults, "m": 4, "hidden": 320, "intermediate": 128, "experts": 6}, "normal", 3)
FAULTS = list(caller_faults.faults())

pytestmark = pytest.mark.usefixtures("one_thread")


def made(case: Case) -> dict[str, torch.Tensor]:
    return CHECK.inputs(case, torch.Generator().manual_seed(case.input_seed))


@pytest.mark.parametrize(("layer", "fault", "change"), FAULTS, ids=[f"{layer}: {fault}" for layer, fault, _ in FAULTS])
def test_each_fault_is_told_from_all_others(layer: str, fault: str, change: caller_faults.Change) -> None:
    inputs = made(CASE)
    expected = CHECK.reference(CASE, inputs)["y"]
    output = block_reference(CASE, inputs, change)["y"].estimate.value.to(torch.bfloat16)
    said = caller_faults.explanation(CASE, inputs, output, expected)
    assert said.startswith(f"{layer}: {fault}"), said


def test_what_no_fault_gives_is_not_explained() -> None:
    inputs = made(CASE)
    expected = CHECK.reference(CASE, inputs)["y"]
    output = expected.estimate.value.to(torch.bfloat16)
    noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    assert caller_faults.explanation(CASE, inputs, output + 20 * noise, expected) == ""
    assert caller_faults.explanation(CASE, inputs, output / 0, expected) == "", "no numbers to compare"


def test_a_wrong_router_is_said_before_what_follows_from_it() -> None:
    inputs = made(CASE)
    expected = CHECK.reference(CASE, inputs)
    outputs = {name: reference.estimate.value.to(torch.bfloat16) * 2 for name, reference in expected.items()}
    found = judge(outputs, expected, CHECK.axes(CASE, inputs)).mismatches[::-1]
    ordered, words = CHECK.order_mismatches(CASE, inputs, outputs, expected, found)
    assert [each.output for each in ordered] == ["router_logits", "y"] and words == "first wrong: the router"
