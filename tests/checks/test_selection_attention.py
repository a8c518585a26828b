"""``selection_attention``: empty selections are left out, all are what they claim; see also ``test_kernels.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpucheck.checks.selection_attention import SelectionAttention, pieces, visible
from tests.checks.conftest import CheckRunner, Twin

CHECK = SelectionAttention()
DENSE: dict[str, Any] = {"q_len": 10, "k_len": 300}
VARIABLE: dict[str, Any] = {"lengths": "variable", "batch": 3, "q_len": 12, "k_len": 260}


def test_empty_selection_that_is_not_left_out_shows_as_nan(runner: CheckRunner, twin: Twin) -> None:
    from gpucheck.checks.kernels import selection_attention_kernel as selection_attention

    case = runner.case(CHECK, "normal", {**DENSE, "q_len": 40, "k_len": 100})
    ranges = runner.inputs(CHECK, case)["ranges"]
    empty = (ranges[..., 0] == ranges[..., 1]).all((1, 2))
    assert 0 < empty.sum() < 20
    twin(selection_attention, "range(begin, end, BLOCK_L)", "range(begin, tl.maximum(end, begin + 1), BLOCK_L)")
    found = runner.run(CHECK, case).mismatches["o"]
    assert found.nan >= int(empty.sum()) * 4 * 64 and found.first_nonfinite is not None


@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize("params", [{**DENSE, "batch": 2}, {**VARIABLE, "q_heads": 4, "kv_heads": 2}])
def test_reference_agrees_with_sdpa_under_the_equivalent_mask(
    params: dict[str, Any], data: str, runner: CheckRunner
) -> None:
    case = runner.case(CHECK, data, params)
    inputs = runner.inputs(CHECK, case)
    value = CHECK.reference(case, inputs)["o"].estimate.value
    group = case["q_heads"] // case["kv_heads"]
    for q_part, k_part in pieces(inputs):
        keys = k_part.stop - k_part.start
        mask = torch.zeros(q_part.stop - q_part.start, case["kv_heads"], keys, dtype=torch.bool)
        for query, heads in enumerate(inputs["ranges"][q_part].tolist()):
            for head, slots in enumerate(heads):
                for begin, end in slots:
                    mask[query, head, begin:end] = True
        q, k, v = (inputs[name][part].double() for name, part in (("q", q_part), ("k", k_part), ("v", k_part)))
        k, v, mask = (part.repeat_interleave(group, 1) for part in (k, v, mask))
        wanted = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask.transpose(0, 1)
        ).transpose(0, 1)
        wanted = torch.where(mask.any(-1, keepdim=True), wanted, 0.0)  # some versions give NaN where nothing is seen
        torch.testing.assert_close(value[q_part], wanted, rtol=1e-12, atol=1e-12)


def test_selections_are_what_a_kernel_must_bear(runner: CheckRunner) -> None:
    case = runner.case(CHECK, "normal", {"q_len": 300, "k_len": 600, "slots": 4})
    ranges = runner.inputs(CHECK, case)["ranges"][:, 0].long()
    begin, end = ranges[..., 0], ranges[..., 1]
    position = torch.arange(300) + 300
    filled = begin < end
    assert (end >= begin).all() and (end <= position[:, None] + 1).all()
    chosen = filled.any(1)
    assert 10 < (~chosen).sum() < 60 and chosen[-1]
    assert torch.equal(torch.where(filled, end, 0).amax(1)[chosen], position[chosen] + 1)  # ends at its own position
    assert (begin[filled] % 128 == 0).all()
    assert (end - begin)[filled].max() > 128 and filled.sum(1).max() == 4
    assert (begin[~filled] > 0).any()
    length = torch.where(filled, end - begin, 0).sum(1)
    assert torch.equal(visible(ranges, 600).sum(1), length)  # ranges do not overlap
    first_empty = ~filled[:, 0] & filled.any(1)
    assert first_empty.any()


def test_sequences_of_variable_length(runner: CheckRunner) -> None:
    inputs = runner.inputs(CHECK, runner.case(CHECK, "exact", {**VARIABLE, "batch": 6}))
    lengths = [(q.stop - q.start, k.stop - k.start) for q, k in pieces(inputs)]
    assert lengths[0] == (12, 260) and len(set(lengths)) > 3
    assert inputs["q"].shape[0] == sum(q for q, _ in lengths) and inputs["k"].shape[0] == sum(k for _, k in lengths)


@pytest.mark.usefixtures("interpreter")
def test_wrapper_refuses_arguments_that_do_not_fit() -> None:
    from gpucheck.checks.kernels.selection_attention_kernel import selection_attention

    q, k, ranges = torch.zeros(3, 4, 64), torch.zeros(5, 2, 64), torch.zeros(3, 2, 1, 2, dtype=torch.int32)
    options: dict[str, Any] = {"batch": 1, "most_queries": 3}
    with pytest.raises(ValueError, match="do not fit together"):
        selection_attention(q, k[:, :, :32], k[:, :, :32], ranges, **options)
    with pytest.raises(ValueError, match="ranges must be"):
        selection_attention(q, k, k, ranges[:2], **options)
    assert selection_attention(q[:0], k, k, ranges[:0], **options).shape == (0, 4, 64)
