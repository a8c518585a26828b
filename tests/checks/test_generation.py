"""The decoder's reference against plain loops, and what is said of records that hold an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from gpucheck.checks.base import Runtime
from gpucheck.checks.decoder import device, passes
from gpucheck.checks.decoder.shape import (
    ARGMAX,
    IN_LAYER,
    LAYER,
    LOGITS,
    OF_RANKS,
    OPERATIONS,
    TOKENS,
    UNEMBEDDING,
    Shape,
)
from gpucheck.checks.decoder.tensor_parallel import reason_against
from gpucheck.checks.generation import Generation
from gpucheck.model.case import Case
from gpucheck.verify.judge import Judgement, judge

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
SMALL = {
    "layers": 2,
    "batch": 2,
    "tokens": 7,
    "hidden": 64,
    "heads": 2,
    "kv_heads": 1,
    "window": 3,
    "experts": 8,
    "top_k": 2,
    "intermediate": 32,
    "vocabulary": 40,
}
Outputs = dict[str, Tensor]


def stored(value: Tensor) -> Tensor:
    return value.float().bfloat16().double()


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return stored(x / (x.square().mean() + 1e-5).sqrt() * weight.double())


def mxfp4(codes: Tensor, scales: Tensor) -> Tensor:
    nibbles = torch.stack([codes & 15, codes >> 4], 1).flatten(0, 1).long()
    plain = torch.where(nibbles >= 8, -1.0, 1.0).double() * FP4[nibbles % 8]
    return plain * torch.stack([torch.pow(2.0, scales[term // 32].double() - 127) for term in range(len(plain))])


def turned(head: Tensor, position: int) -> Tensor:
    """Each pair of coordinates as a complex number, turned by its angle."""
    half = len(head) // 2
    angles = position * 150_000.0 ** (-torch.arange(half).double() / half)
    pairs = torch.complex(head[:half], head[half:]) * torch.polar(torch.ones(half).double(), angles)
    return torch.cat([pairs.real, pairs.imag])


class Plain:
    """One sequence of the model, written down once more, token by token and head by head."""

    def __init__(self, case: Case, inputs: Outputs) -> None:
        self.case, self.inputs = case, inputs
        self.keys: list[list[list[Tensor]]] = [[] for _ in range(case["layers"])]
        self.values: list[list[list[Tensor]]] = [[] for _ in range(case["layers"])]

    def logits(self, token: int) -> Tensor:
        x = self.inputs["embedding"][token].double()
        for layer in range(self.case["layers"]):
            x = stored(x + self.attention(layer, norm(x, self.inputs["norms"][layer, 0])))
            x = stored(x + self.experts(layer, norm(x, self.inputs["norms"][layer, 1])))
        return norm(x, self.inputs["final_norm"]) @ self.inputs["unembedding"].double()

    def linear(self, name: str, layer: int, x: Tensor) -> Tensor:
        return stored(x @ self.inputs[name][layer].double() + self.inputs[f"{name}_bias"][layer].double())

    def weight(self, name: str, layer: int, expert: int) -> Tensor:
        return mxfp4(self.inputs[name][layer, expert], self.inputs[f"{name}_scale"][layer, expert])

    def attention(self, layer: int, x: Tensor) -> Tensor:
        heads, groups = self.case["heads"], self.case["kv_heads"]
        split = list(self.linear("qkv", layer, x).split(self.case["head_dim"]))
        position = len(self.keys[layer])
        rotated = [stored(turned(head, position)) for head in split[: heads + groups]]
        self.keys[layer].append(rotated[heads:])
        self.values[layer].append(split[heads + groups :])
        first = max(0, position + 1 - self.case["window"]) if layer % 2 == 0 else 0
        mixed = []
        for head in range(heads):
            own = head * groups // heads
            scores = [float(rotated[head] @ keys[own]) / 8 for keys in self.keys[layer][first:]]
            weights = [math.exp(score) for score in scores]
            total = sum(weights) + math.exp(float(self.inputs["sinks"][layer, head]))
            seen = zip(weights, self.values[layer][first:], strict=True)
            mixed.append(sum(weight / total * values[own] for weight, values in seen))
        return self.linear("out", layer, stored(torch.cat(mixed)))

    def experts(self, layer: int, x: Tensor) -> Tensor:
        scores = self.linear("router", layer, x)
        chosen = sorted(range(len(scores)), key=lambda expert: (-float(scores[expert]), expert))[: self.case["top_k"]]
        gates = stored(torch.softmax(scores[chosen], 0))
        total = torch.zeros_like(x)
        for expert, gate in zip(chosen, gates, strict=True):
            up, down = (self.weight(name, layer, expert) for name in ("up", "down"))
            inner = x @ up + self.inputs["up_bias"][layer, expert].double()
            gated, linear = inner[0::2].clamp(max=7.0), inner[1::2].clamp(-7.0, 7.0)
            inner = stored(gated * torch.sigmoid(1.702 * gated) * (linear + 1))
            total += stored((inner @ down + self.inputs["down_bias"][layer, expert].double()) * gate)
        return stored(total)


@pytest.fixture(scope="module")
def case() -> Case:
    return Generation.spec.case(SMALL, "normal", 0)


@pytest.fixture(scope="module")
def inputs(case: Case) -> Outputs:
    return Generation().inputs(case, torch.Generator().manual_seed(case.input_seed))


@pytest.fixture(scope="module")
def right(case: Case, inputs: Outputs) -> Outputs:
    """What a device would return that rounds as little as it may."""
    recorded = passes.decode(Shape.of(case), inputs)
    return {**recorded, LOGITS: recorded[UNEMBEDDING], TOKENS: recorded[ARGMAX]}


@pytest.fixture(scope="module")
def judged(case: Case, inputs: Outputs) -> Callable[[Outputs], tuple[Judgement, str]]:
    """Judges outputs as a supervisor does."""
    check = Generation()
    reference = check.reference(case, inputs)

    def judged(outputs: Outputs) -> tuple[Judgement, str]:
        expected = check.references_given_outputs(case, inputs, outputs, reference)
        found = judge(outputs, expected, check.axes(case, inputs))
        found.mismatches, words = check.order_mismatches(case, inputs, outputs, expected, found.mismatches)
        return found, words

    return judged


def test_the_reference_decodes_what_plain_loops_decode(case: Case, inputs: Outputs, right: Outputs) -> None:
    for sequence, start in enumerate(inputs["start"].tolist()):
        plain, token = Plain(case, inputs), start
        for step in range(case["tokens"]):
            logits = plain.logits(token)
            assert torch.allclose(right[LOGITS][step, sequence].double(), logits, atol=2e-2), (step, sequence)
            token = int(logits.argmax())
            assert int(right[TOKENS][step, sequence]) == token


def test_a_right_record_is_judged_right(right: Outputs, judged: Any) -> None:
    found, words = judged(right)
    assert not found.mismatches and not found.violations and words == ""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_number_is_found_where_it_came_about(right: Outputs, judged: Any, operation: str) -> None:
    """A record in which one operation is wrong at one step, whatever is wrong behind it."""
    wrong = {name: value.clone() for name, value in right.items()}
    place = (3, 1) if operation in LAYER else (3,)
    held = wrong[operation][place].flatten()
    held[0] = held[0] + 1 if not held.is_floating_point() else held[0] * 1.1 + 0.1
    wrong[operation][place] = held.reshape(wrong[operation][place].shape)
    found, words = judged(wrong)
    where = "step 3, layer 1" if operation in LAYER else "step 3"
    assert words.startswith(f"first wrong at {where}, {operation}")
    assert found.mismatches[0].output == operation
    if operation in LAYER:
        assert {mismatch.output for mismatch in found.mismatches[1:]} <= set(OPERATIONS[OPERATIONS.index(operation) :])


def test_what_follows_from_nan_is_left_open(right: Outputs, judged: Any) -> None:
    """NaN from one projection on: nothing can be said of what other operations make of it."""
    wrong = {name: value.clone() for name, value in right.items()}
    for name in OPERATIONS[OPERATIONS.index("qkv") : OPERATIONS.index(UNEMBEDDING) + 1]:
        if wrong[name].is_floating_point():
            wrong[name][4:] = math.nan
    wrong["routing order"][4:] = 99
    wrong["attention norm"][4:, 1:] = wrong["embedding"][5:] = math.nan
    found, words = judged(wrong)
    assert words.startswith("first wrong at step 4, layer 0, qkv")
    culprits = [mismatch.output for mismatch in found.mismatches if mismatch.output not in (LOGITS, TOKENS)]
    assert culprits == ["qkv", "embedding"], "the embedding is given a token, which is never NaN"
    assert found.mismatches[0].region.startswith("steps 4-6 of 7, layer 0 of 2")


def test_rows_in_a_wrong_order_are_not_held_against_the_experts(right: Outputs, judged: Any) -> None:
    wrong = {name: value.clone() for name, value in right.items()}
    for name in ("routing order", "experts up"):
        wrong[name][2, 0] = wrong[name][2, 0].flip(0)
    found, _ = judged(wrong)
    assert [mismatch.output for mismatch in found.mismatches] == ["routing order"]


def test_a_token_that_another_beats_by_roundings_only_is_right() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0 - 1e-3, 0.0]])
    slack = torch.tensor([1e-2])
    for token, accepted in ((1, 1), (2, 2), (0, 1), (-1, 1), (99, 1)):
        assert passes._one_of(logits, torch.tensor([token]), slack).value.tolist() == [accepted]


def test_most_tokens_are_decided_by_more_than_roundings() -> None:
    """The sizes and the seed that scenarios use; the first steps stand for all of them."""
    case = Generation.spec.case({"tokens": 16}, "normal", 0)
    inputs = Generation().inputs(case, torch.Generator().manual_seed(0))
    estimate = Generation().reference(case, inputs)[LOGITS].estimate
    assert estimate.error is not None
    best = estimate.value.topk(2, -1).values
    decided = best[..., 0] - best[..., 1] > 2 * estimate.error[..., 0]
    assert decided.double().mean() > 0.8
    assert (estimate.error < 0.15 * estimate.value.std()).all()
    assert len(set(estimate.value.argmax(-1).flatten().tolist())) > 16, "the text must not go round in circles"


def test_outputs_that_do_not_fit_are_told_as_such(right: Outputs, judged: Any) -> None:
    broken = {**right, "rope": right["rope"][1:]}
    del broken["router"]
    found, _ = judged(broken)
    told = [violation.detail for violation in found.violations]
    assert any("rope has shape (6," in line for line in told) and "router was not returned" in told


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"heads": 3}, "heads 3 is not a multiple of kv_heads 2"),
        ({"top_k": 33}, "top_k <= experts"),
        ({"hidden": 48}, "multiples of 32"),
        ({"vocabulary": 1}, "at most vocabulary"),
    ],
)
def test_impossible_parameters_have_a_reason(params: dict[str, Any], words: str) -> None:
    assert words in str(Generation().reason_against({**Generation.spec.defaults, **params}, "normal"))


class Broken:
    """A device that works until it is waited for, like one with an illegal access behind it."""

    device = torch.device("cpu")

    def synchronize(self) -> None:
        raise RuntimeError("an illegal memory access was encountered")


def test_what_came_before_a_broken_device_says_where_it_began(case: Case, right: Outputs, judged: Any) -> None:
    """An operation gives wrong numbers, a later one breaks the device: the first is named, from copies on the host."""
    recorder = device._Recorder(Shape.of(case), cast(Runtime, Broken()))
    wrong = {name: value.clone() for name, value in right.items()}
    wrong["qkv"][0, 1, 0, 0] += 8
    recorder._keep("embedding", wrong["embedding"][0])
    for layer, made in enumerate((LAYER, LAYER[: LAYER.index("experts up")])):
        for operation in made:
            recorder._keep(operation, wrong[operation][0, layer])
    with pytest.raises(RuntimeError, match="illegal memory access"):
        recorder.outputs()
    _, words = judged(recorder.left())
    assert words.startswith("first wrong at step 0, layer 1, qkv")


SHARED = {**SMALL, "heads": 4, "kv_heads": 2, "head_dim": 64, "tokens": 4, "intermediate": 64}
RANKS = 2


@pytest.fixture(scope="module")
def of_ranks() -> list[tuple[Case, Outputs, Outputs]]:
    """Each rank's case, the inputs, and what the rank returns where all of them are right."""
    whole = Generation.spec.case(SHARED, "normal", 0)
    inputs = Generation().inputs(whole, torch.Generator().manual_seed(whole.input_seed))
    made = []
    for rank in range(RANKS):
        recorded = passes.decode(Shape.of(whole, OF_RANKS), inputs, rank, RANKS)
        returned = {name: recorded[name] for name in OF_RANKS.operations}
        returned |= {LOGITS: returned[UNEMBEDDING], TOKENS: returned[ARGMAX]}
        made.append((whole.at(rank, RANKS), inputs, returned))
    return made


def judged_at(case: Case, inputs: Outputs, outputs: Outputs) -> tuple[Judgement, str]:
    check = Generation()
    expected = check.references_given_outputs(case, inputs, outputs, check.reference(case, inputs))
    found = judge(outputs, expected, check.axes(case, inputs))
    ordered, words = check.order_mismatches(case, inputs, outputs, expected, found.mismatches)
    found.mismatches = ordered
    return found, words


def test_ranks_that_share_the_model_decode_what_one_decodes(of_ranks: Any) -> None:
    """Each rank's record is judged right, and all have the tokens that plain loops over the whole model give."""
    for case, inputs, outputs in of_ranks:
        found, words = judged_at(case, inputs, outputs)
        assert not found.mismatches and not found.violations and words == ""
        for sequence, start in enumerate(inputs["start"].tolist()):
            plain, token = Plain(case, inputs), start
            for step in range(case["tokens"]):
                logits = plain.logits(token)
                assert torch.allclose(outputs[LOGITS][step, sequence].double(), logits, atol=4e-2)
                token = int(logits.argmax())
                assert int(outputs[TOKENS][step, sequence]) == token


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize(
    ("operation", "whose"),
    [
        ("attention out part", "computed by this rank, no collective"),
        ("attention out parts", "the all-gather, this rank's own part is right"),
        ("attention out", "the all-reduce, this rank's own part is right"),
        ("experts up", "computed by this rank, no collective"),
        ("experts down", "the all-reduce, this rank's own part is right"),
        ("unembedding part", "computed by this rank, no collective"),
        (UNEMBEDDING, "the all-gather, this rank's own part is right"),
    ],
)
def test_a_wrong_number_of_a_rank_is_the_ranks_or_the_collectives(
    of_ranks: Any, rank: int, operation: str, whose: str
) -> None:
    case, inputs, outputs = of_ranks[rank]
    wrong = {name: value.clone() for name, value in outputs.items()}
    place = (2, 1) if operation in IN_LAYER else (2,)
    own = wrong[operation][place]
    own[(rank,) if operation.endswith("parts") else ()].flatten()[5] += 0.5
    found, words = judged_at(case, inputs, wrong)
    where = "step 2, layer 1" if operation in IN_LAYER else "step 2"
    assert words.startswith(f"first wrong at {where}, {operation}: {whose}")
    assert found.mismatches[0].output == operation


def test_a_sum_that_misses_a_rank_is_the_all_reduce(of_ranks: Any) -> None:
    case, inputs, outputs = of_ranks[1]
    wrong = {name: value.clone() for name, value in outputs.items()}
    wrong["experts down"][1, 0] = wrong["experts down parts"][1, 0, 1]  # the part of rank 0 is missing
    found, words = judged_at(case, inputs, wrong)
    assert words.startswith("first wrong at step 1, layer 0, experts down: the all-reduce")
    assert {mismatch.output for mismatch in found.mismatches} == {"experts down", "expert residual"}


@pytest.mark.parametrize(
    ("changes", "ranks", "says"),
    [
        ({"kv_heads": 1}, 2, "1 kv_heads"),
        ({"vocabulary": 41}, 2, "41 vocabulary"),
        ({}, 2, ""),
        ({"intermediate": 32}, 2, "1 blocks of 32"),
    ],
)
def test_ranks_that_cannot_share_a_model_are_told_why(changes: dict[str, Any], ranks: int, says: str) -> None:
    shape = Shape.of(Generation.spec.case({**SHARED, **changes}, "normal", 0))
    reason = reason_against(shape, ranks)
    assert (says in reason) if says else reason == ""
