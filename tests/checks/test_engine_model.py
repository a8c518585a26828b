"""The model that engines are given: its checkpoint, its data and what its reference tells apart."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from gpucheck.checks.base import OUTPUTS, Runtime
from gpucheck.checks.decoder import checkpoint, passes
from gpucheck.checks.decoder.shape import ARGMAX, EXPERTS, LOGITS, SERVED, TOKENS, UNEMBEDDING, UNWRITTEN
from gpucheck.checks.gpt_oss_block import block_reference
from gpucheck.checks.transformers_model import TransformersModel
from gpucheck.library.engines.served_model import Seen, ServedModel
from gpucheck.model.case import Case
from gpucheck.verify.judge import judge

SMALL = {"hidden": 64, "heads": 2, "kv_heads": 1, "window": 2, "intermediate": 32, "prompt": 3, "tokens": 5}
CHECK = TransformersModel()


@pytest.fixture(scope="module")
def case() -> Case:
    return CHECK.spec.case(SMALL, "normal", 0)


@pytest.fixture(scope="module")
def inputs(case: Case) -> dict[str, Tensor]:
    return CHECK.inputs(case, torch.Generator().manual_seed(case.input_seed))


@pytest.fixture(scope="module")
def right(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    recorded = passes.decode(CHECK.shape(case), inputs)
    return {**recorded, LOGITS: recorded[UNEMBEDDING], TOKENS: recorded[ARGMAX]}


def told(case: Case, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> str:
    """What is said of outputs, "" of right ones."""
    expected = CHECK.references_given_outputs(case, inputs, outputs, CHECK.reference(case, inputs))
    found = judge(outputs, expected, CHECK.axes(case, inputs))
    assert not found.violations
    return CHECK.order_mismatches(case, inputs, outputs, expected, found.mismatches)[1]


def test_a_checkpoint_holds_what_the_reference_computes_with(case: Case, inputs: dict[str, Tensor]) -> None:
    """Biases, norms and sinks are values of bf16, so storing them changes nothing."""
    shape = CHECK.shape(case)
    held = checkpoint.tensors(shape, inputs)
    assert {value.dtype for value in held.values()} == {torch.bfloat16, torch.uint8}
    for layer in range(shape.layers):
        named = {name.partition(f"layers.{layer}.")[2]: value for name, value in held.items()}
        assert torch.equal(named["self_attn.sinks"].float(), inputs["sinks"][layer])
        qkv = torch.cat([named[f"self_attn.{name}_proj.weight"] for name in "qkv"])
        assert torch.equal(qkv.T, inputs["qkv"][layer])
        blocks = named["mlp.experts.gate_up_proj_blocks"]
        assert blocks.shape == (8, 64, 2, 16), "experts, columns, blocks of 32 terms, bytes of a block"
        assert torch.equal(blocks[3, 5].flatten(), inputs["up"][layer, 3, :, 5])
        assert torch.equal(named["mlp.experts.down_proj_scales"][3, 5], inputs["down_scale"][layer, 3, :, 5])
    config = checkpoint.config(shape)
    assert config["layer_types"] == ["sliding_attention", "full_attention"] and config["rope_scaling"]["factor"] == 32


def test_rope_is_stretched_between_the_pairs_that_turn_often_and_those_that_hardly_turn(
    case: Case, inputs: dict[str, Tensor]
) -> None:
    size = 0.1 * math.log(32) + 1
    cos, sin = inputs["cos"].double() / size, inputs["sin"].double() / size
    turned = torch.atan2(sin[1], cos[1])
    plain = 150_000.0 ** (-torch.arange(32).double() / 32)
    assert torch.allclose(turned[:9], plain[:9], rtol=0.01) and torch.allclose(turned[18:], plain[18:] / 32, rtol=0.01)
    between = turned[9:18] / plain[9:18]
    assert ((between < 1) & (between > 1 / 32)).all() and (between.diff() < 0).all()


def test_right_outputs_are_right_and_the_first_token_is_quiet(
    case: Case, inputs: dict[str, Tensor], right: dict[str, Tensor]
) -> None:
    assert told(case, inputs, right) == ""
    first = right["embedding"][0].double().square().mean(-1)
    assert (first < 1e-4).all() and (right["embedding"][1].double().square().mean(-1) > 0.3).all()


@pytest.mark.parametrize("operation", SERVED)
def test_a_wrong_number_is_found_where_it_came_about(
    case: Case, inputs: dict[str, Tensor], right: dict[str, Tensor], operation: str
) -> None:
    wrong = {name: value.clone() for name, value in right.items()}
    wrong[operation][3, 1, 0, 0] = wrong[operation][3, 1, 0, 0] * 1.2 + 0.2
    assert told(case, inputs, wrong).startswith(f"first wrong at step 3, layer 1, {operation}")


def test_a_token_that_was_given_is_not_decoded(case: Case, inputs: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """What a model says behind a token of the prompt goes nowhere; behind the last one it is the next token."""
    other = {name: value.clone() for name, value in right.items()}
    other["embedding"][2] = inputs["embedding"][right[TOKENS][1]]
    assert told(case, inputs, other).startswith("first wrong at step 2, embedding")


@pytest.mark.parametrize(
    ("params", "words"),
    [({"prompt": 1}, "1 < prompt <= tokens"), ({"tokens": 5}, "1 < prompt <= tokens"), ({"vocabulary": 11}, "at most")],
)
def test_impossible_parameters_have_a_reason(params: dict[str, Any], words: str) -> None:
    assert words in str(CHECK.reason_against({**CHECK.spec.defaults, **params}, "normal"))


class Replayed(ServedModel):
    """Gives what was recorded, and raises at a step."""

    def __init__(self, recorded: dict[str, Tensor], raises: int) -> None:
        self.recorded, self.raises = recorded, raises

    def begin(self, batch: int, tokens: int) -> None:
        assert (batch, tokens) == (2, 5)

    def forward(self, tokens: Tensor, first: int) -> Seen:
        last = first + tokens.shape[1]
        if last > self.raises:
            raise RuntimeError("planted on purpose")

        def rows(value: Tensor) -> Tensor:
            return value[first:last].transpose(0, 1).flatten(0, 1)

        whole = {name: [rows(self.recorded[name])] for name in ("embedding", "final norm", "unembedding")}
        return whole | {name: [rows(self.recorded[name][:, layer]) for layer in range(2)] for name in SERVED}

    def operands(self) -> dict[str, Tensor]:
        return {}


def test_what_a_model_gives_is_told_by_step_and_layer(case: Case, inputs: Any, right: dict[str, Tensor]) -> None:
    outputs = CHECK.launch(case, (inputs["start"], Replayed(right, 5)), cast(Runtime, None))
    assert outputs.keys() == right.keys() and all(torch.equal(outputs[name], right[name]) for name in right)


def test_an_error_leaves_what_was_computed_before_it(case: Case, inputs: Any, right: dict[str, Tensor]) -> None:
    wrong = {**right, "qkv": right["qkv"].clone()}
    wrong["qkv"][3, 1, 0, 0] += 8
    with pytest.raises(RuntimeError, match="planted") as caught:
        CHECK.launch(case, (inputs["start"], Replayed(wrong, 4)), cast(Runtime, None))
    left = getattr(caught.value, OUTPUTS)
    assert told(case, inputs, left).startswith("first wrong at step 3, layer 1, qkv")
    assert left["qkv"][4].isnan().all() and (left[TOKENS][4] == UNWRITTEN).all()


def test_wrong_experts_say_what_a_caller_did_otherwise(case: Case, inputs: Any, right: dict[str, Tensor]) -> None:
    names = ("up", "up_scale", "up_bias", "down", "down_scale", "down_bias")
    block = {name: inputs[name][1] for name in names}
    block |= {"x": right["expert norm"][3, 1], "router_logits": right["router"][3, 1]}
    block["down_bias"] = 0 * block["down_bias"]
    wrong = {**right, EXPERTS: right[EXPERTS].clone()}
    wrong[EXPERTS][3, 1] = block_reference(case, block)["y"].estimate.value.bfloat16()
    said = "first wrong at step 3, layer 1, experts (second product: its bias is left out"
    assert told(case, inputs, wrong).startswith(said)
