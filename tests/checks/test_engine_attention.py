"""Attention as engines call it: data that tells faults apart, and the words for each of them; no engine is needed."""

from __future__ import annotations

import pytest
import torch

from gpucheck.checks import load
from gpucheck.checks.attention_faults import explanation, faults
from gpucheck.checks.engine_attention import attention_reference
from gpucheck.checks.serving_batch import sequences
from gpucheck.model.case import Case
from gpucheck.verify.judge import accepted

SHAPES = [{"queries": queries, "window": window} for queries in ("mixed", "decode") for window in (0, 20)]


def case_of(data: str, **params: object) -> Case:
    return load("vllm_attention").spec.case(params, data, 5)  # type: ignore[arg-type]


def inputs_of(case: Case) -> dict[str, torch.Tensor]:
    return load(case.check).inputs(case, torch.Generator().manual_seed(case.input_seed))


@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_known_fault_gives_other_outputs_and_is_told_as_itself(data: str, shape: dict[str, object]) -> None:
    case = case_of(data, **shape)
    inputs = inputs_of(case)
    expected = attention_reference(case, inputs)
    right = expected.estimate.value.to(torch.bfloat16)
    assert accepted(right, expected) is not None
    outputs = {
        words: attention_reference(case, inputs, change).estimate.value.to(torch.bfloat16)
        for words, change in faults(case)
    }
    assert len(outputs) >= 9
    for words, output in outputs.items():
        assert accepted(output, expected) is None, f"{words}: nobody would see it"
        told = explanation(case, inputs, output, expected)
        layer, _, fault = told.partition(": ")
        assert layer == "attention"
        fault = fault.partition(" (that")[0]
        same = fault in outputs and torch.equal(outputs[fault].nan_to_num(), output.nan_to_num())
        assert same or (output.isnan().any() and "NaN" in told), (words, told)


def test_a_soft_cap_that_is_not_applied_and_heads_without_sinks_are_told() -> None:
    case = case_of("normal", soft_cap=3.0)
    inputs = inputs_of(case)
    expected = attention_reference(case, inputs)
    changes = dict(faults(case))
    for words in ("the soft cap is not applied", "the sinks are left out"):
        output = attention_reference(case, inputs, changes[words]).estimate.value.to(torch.bfloat16)
        assert words in explanation(case, inputs, output, expected)


def test_what_no_sequence_holds_is_nan_and_pages_before_a_window_are_of_somebody_else() -> None:
    case = case_of("exact", window=20, k_len=150)
    inputs = inputs_of(case)
    owned = torch.zeros(inputs["k_cache"].shape[:2], dtype=torch.bool)
    given = 0
    for sequence in sequences(case, inputs):
        old = sequence.places[: len(sequence.places) - sequence.new]
        owned.flatten()[old] = True
        given += int((inputs["table"][sequence.number] == 0).sum())
        seen = old[max(0, len(old) - case["window"] + 1) :]
        assert (seen >= case["page"]).all(), "no page that is seen is given away"
    assert given > 0 and not inputs["k_cache"][0].isnan().any(), "the first page holds what other sequences left"
    owned[0] = True
    held = inputs["k_cache"].isnan().flatten(2).all(-1)
    assert torch.equal(held, ~owned), "the places of new keys too are NaN, until they are written"


@pytest.mark.parametrize("queries", ["mixed", "decode"])
def test_an_fp8_cache_holds_numbers_that_the_engine_can_write_without_rounding(queries: str) -> None:
    case = case_of("normal", queries=queries, kv_dtype="fp8")
    check, inputs = load(case.check), inputs_of(case)
    assert inputs["k_cache"].dtype == torch.float8_e4m3fn
    for name in ("new_keys", "new_values"):
        value = check.reference(case, inputs)[name].estimate.value
        assert torch.equal(value, value.to(torch.float8_e4m3fn).double())


def test_impossible_layers_are_refused_in_words() -> None:
    check = load("vllm_attention")
    defaults = dict(check.spec.defaults)
    for change, words in (
        ({"q_len": 71}, "q_len 71 is more than k_len 70"),
        ({"kv_heads": 3}, "not a multiple"),
        ({"soft_cap": 3.0}, "neither a soft cap"),
        ({"kv_dtype": "fp8"}, "nor an fp8 cache"),
        ({"window": -1}, "at least 0"),
    ):
        assert words in (check.reason_against({**defaults, **change}, "exact") or "")
