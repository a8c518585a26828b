"""A wrong expert block is explained by the number, and the layer, that was not as it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks.caller_faults import explanation
from gpucheck.checks.gpt_oss_block import NO_CHANGE, Change, block_reference
from gpucheck.checks.vllm_moe import VllmMoe
from gpucheck.model.case import Case

CHECK = VllmMoe()
SIZES = {"m": 5, "hidden": 320, "intermediate": 128, "experts": 6, "top_k": 2}
EXPERT = ("up", "up_scale", "up_bias", "down", "down_scale", "down_bias")
Inputs = dict[str, Tensor]

pytestmark = pytest.mark.usefixtures("one_thread")


def case_of(**params: Any) -> Case:
    return CHECK.spec.case({**CHECK.spec.defaults, **SIZES, **params}, "normal", 3)


def said(case: Case, change: Change = NO_CHANGE, edit: Callable[[Tensor], Tensor] = lambda y: y) -> str:
    """What is told of the first output that is wrong where a caller computes with ``change``."""
    inputs = CHECK.inputs(case, torch.Generator().manual_seed(case.input_seed))
    expected = CHECK.reference(case, inputs)
    name = "y_ep1" if case["ep"] > 1 else "y"
    part = CHECK.part(case, name)
    output = edit(block_reference(case, inputs, change, part)["y"].estimate.value).to(torch.bfloat16)
    return explanation(case, inputs, output, expected[name], part)


def edited(edit: Callable[[Tensor], Tensor], *names: str) -> Change:
    return Change(lambda inputs: {**inputs, **{name: edit(inputs[name]) for name in names}})


def within(first: int, last: int) -> Callable[[Tensor], Tensor]:
    """Exchanges experts in a slice of all: each gets what is of the one before."""

    def turn(value: Tensor) -> Tensor:
        turned = value.clone()
        turned[first:last] = value[first:last].roll(1, 0)
        return turned

    return turn


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change(alpha=1.6), "activation: its alpha is 1.6, expected 1.702 (that gives exactly"),
        (Change(alpha=1.72), "activation: its alpha is 1.72, expected 1.702 (that gives exactly"),
        (Change(limit=5.5), "activation: its clamp is at 5.5, expected 7 (that gives exactly"),
        (Change(gates=lambda gates, *_: gates.sqrt()), "router: its weights of token 0 are "),
        (Change(gates=lambda gates, *_: gates * 0.5), "router: its weights of token 0 are "),
        (Change(scores=lambda logits: logits.roll(1, 1)), "router: token 0 is computed by expert "),
        (edited(within(0, 6), *EXPERT), "router: token 0 is computed by expert "),
        (edited(lambda bias: bias * 0.5, "down_bias"), "second product: the weights of its bias are "),
        (Change(rows=lambda tokens: tokens.roll(1)), "first product: the row of token "),
        (edited(lambda bias: bias * 3, "up_bias"), "first product or activation: the second product gives these"),
    ],
)
def test_the_layer_is_told_with_what_it_did(change: Change, words: str) -> None:
    told = said(case_of(), change)
    assert told.startswith(words), told


def test_what_one_chosen_expert_gives_can_be_left_out() -> None:
    def without_first(gates: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
        return gates * torch.tensor([0.0, 1.0])

    told = said(case_of(), Change(gates=without_first))
    assert told.startswith(("reduce: of token ", "reduce: the expert chosen last")), told


def test_a_row_that_is_added_to_another_token_is_told() -> None:
    def moved(y: Tensor) -> Tensor:
        return torch.cat([y[:1] + y[1:2], y[:1] * 0, y[2:]])

    told = said(case_of(), edit=moved)
    assert told.startswith("reduce: the row of token 1 for expert ") and "is added to token 0" in told, told


def test_a_shifted_map_of_experts_is_told_of_the_rank_that_has_it() -> None:
    told = said(case_of(ep=2), edited(within(3, 6), *EXPERT))
    assert told.startswith("router: token ") and "is computed by expert " in told, told


def test_noise_is_explained_by_nothing() -> None:
    noise = torch.randn((5, 320), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert said(case_of(), edit=lambda y: y + 20 * noise) == ""
    assert said(case_of(), edit=lambda y: 100 * noise) == ""
    assert said(case_of(), edit=lambda y: torch.where(noise > 1, y * 2, y)) == ""
