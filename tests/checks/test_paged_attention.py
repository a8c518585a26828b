"""``paged_attention``: its kernel is right, planted faults show, its cache is what it claims."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpucheck.checks.paged_attention import PagedAttention
from tests.checks.conftest import CheckRunner, Twin

CHECK = PagedAttention()
GROUPED: dict[str, Any] = {"q_heads": 4, "kv_heads": 2}
SINKS: dict[str, Any] = {**GROUPED, "sinks": True}
PAGE = "tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=seen, other=0)"
DOT = 'accumulator += tl.dot(weights.to(v.dtype), v, input_precision="ieee")'


@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"dtype": "fp16"},
        {"dtype": "fp32"},
        {**SINKS, "batch": 7, "k_len": 150, "page": 32},
        {**SINKS, "batch": 6, "k_len": 130, "page": 128, "head_dim": 128, "dtype": "fp32"},
        {"batch": 1, "k_len": 1},
        {"q_heads": 34, "kv_heads": 2, "k_len": 64},
    ],
    ids=lambda params: "-".join(f"{key}{value}" for key, value in params.items()) or "small",
)
def test_kernel_is_right(params: dict[str, Any], data: str, runner: CheckRunner) -> None:
    case = runner.case(CHECK, data, params)
    first, second = (runner.run(CHECK, case, fill=fill) for fill in (0xFF, 0x00))
    assert first.right, first
    assert torch.equal(first.outputs["o"], second.outputs["o"])


@pytest.mark.parametrize(
    ("data", "params", "right", "wrong", "region"),
    [
        ("exact", {}, PAGE, "(keys // PAGE)", "all 4 sequences"),  # the table is ignored
        ("exact", {}, "sequence * table_stride", "0 * table_stride", "sequences"),
        ("exact", {}, "range(0, length,", "range(0, length // PAGE * PAGE,", "sequence 1 of 4"),  # partial last page
        ("exact", {}, "seen = keys < length", "seen = keys < length - 1", "sequences"),
        ("exact", GROUPED, "* slot_stride + kv_head * head_stride", "* slot_stride", "heads 2-3 of 4"),
        ("normal", SINKS, "sink_ptr + heads", "sink_ptr + group", "heads 2-3 of 4"),
        ("normal", SINKS, "SINKS=sinks is not None", "SINKS=False", "all 4 heads"),
        ("exact", {}, "accumulator = accumulator * carried[:, None]", "accumulator = accumulator", "sequence"),
        ("normal", {"dtype": "fp32"}, DOT, DOT + "\n        accumulator = accumulator.to(tl.float16).to(tl.float32)",
         "all 8 heads"),
    ],
)  # fmt: skip
def test_wrong_twin_is_caught(
    data: str, params: dict[str, Any], right: str, wrong: str, region: str, runner: CheckRunner, twin: Twin
) -> None:
    from gpucheck.checks.kernels import paged_attention_kernel as paged_attention

    case = runner.case(CHECK, data, params)
    assert runner.run(CHECK, case).right
    twin(paged_attention, right, wrong)
    assert region in runner.run(CHECK, case).mismatches["o"].region


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("seen = keys < length", "seen = keys <= length"), ("mask=seen[:, None]", "mask=(keys < length + PAGE)[:, None]")],
)
def test_nan_beyond_a_sequence_leaks_into_its_output(right: str, wrong: str, runner: CheckRunner, twin: Twin) -> None:
    """A weight of zero does not undo the NaN it is multiplied with."""
    from gpucheck.checks.kernels import paged_attention_kernel as paged_attention

    twin(paged_attention, right, wrong)
    found = runner.run(CHECK, runner.case(CHECK, "normal", {})).mismatches["o"]
    assert found.nan == found.wrong == found.total and found.first_nonfinite == [0, 0, 0]


def test_head_never_stored_still_holds_the_poison(runner: CheckRunner, twin: Twin) -> None:
    from gpucheck.checks.kernels import paged_attention_kernel as paged_attention

    stored = "tl.store(out_rows + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=inside[:, None]"
    twin(paged_attention, stored, stored.replace("inside[:, None]", "(group < heads_per_group - 1)[:, None]"))
    found = runner.run(CHECK, runner.case(CHECK, "exact", GROUPED)).mismatches["o"]
    assert found.region == "all 4 sequences, 2 of 4 heads (1, 3), all 64 dimensions"
    assert found.poison == found.wrong


def test_store_mask_too_wide_breaks_a_guard(runner: CheckRunner, twin: Twin) -> None:
    from gpucheck.checks.kernels import paged_attention_kernel as paged_attention

    stored = "element_ty), mask=inside[:, None]"
    twin(paged_attention, stored, stored.replace("inside[:, None]", "(group <= heads_per_group)[:, None]"))
    seen = runner.run(CHECK, runner.case(CHECK, "exact", GROUPED))
    assert "128 bytes written after the bfloat16 tensor of shape (4, 4, 64), nearest 1 off" in seen.guards


def test_cache_is_what_a_server_makes_of_it(runner: CheckRunner) -> None:
    case = runner.case(CHECK, "normal", {"batch": 8, "k_len": 100, "page": 16})
    inputs = runner.inputs(CHECK, case)
    lengths, table = inputs["lengths"].tolist(), inputs["table"]
    assert lengths[:5] == [100, 1, 96, 97, 0]
    owned = [table[row, : -(-length // 16)].tolist() for row, length in enumerate(lengths)]
    pages = [page for row in owned for page in row]
    assert len(set(pages)) == len(pages) and pages != sorted(pages)
    cache = inputs["k_cache"]
    assert len(cache) == len(pages) + 2
    free = sorted(set(range(len(cache))) - set(pages))
    assert free == [0, len(cache) - 1] and cache[free].isnan().all()
    assert {page for row, length in enumerate(lengths) for page in table[row, -(-length // 16) :].tolist()} <= {*free}
    assert not cache[owned[3][-1]][:1].isnan().any() and cache[owned[3][-1]][1:].isnan().all()


def test_reference_agrees_with_sdpa(runner: CheckRunner) -> None:
    case = runner.case(CHECK, "normal", {**GROUPED, "batch": 5, "k_len": 70})
    inputs = runner.inputs(CHECK, case)
    value = CHECK.reference(case, inputs)["o"].estimate.value
    for row, length in enumerate(inputs["lengths"].tolist()):
        keys = [divmod(key, 16) for key in range(length)]
        places = [(int(inputs["table"][row, page]), slot) for page, slot in keys]
        k, v = (
            torch.stack([inputs[name][place] for place in places]).double().repeat_interleave(2, 1).transpose(0, 1)
            if places
            else torch.zeros(4, 0, 64).double()
            for name in ("k_cache", "v_cache")
        )
        q = inputs["q"][row].double()[:, None]
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, 0] if places else torch.zeros(4, 64)
        torch.testing.assert_close(value[row], wanted.double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("params", "data", "reason"),
    [
        ({"batch": 0}, "normal", "batch must be at least 1"),
        ({"q_heads": 6, "kv_heads": 4}, "normal", "q_heads 6 is not a multiple of kv_heads 4"),
        ({"k_len": 8193}, "exact", "exact data tells at most 8192 keys apart"),
        ({"q_heads": 65536, "kv_heads": 65536}, "normal", "kv_heads must be at most 65535"),
    ],
)
def test_validate_says_why(params: dict[str, Any], data: str, reason: str) -> None:
    assert reason in (CHECK.validate({**CHECK.spec.defaults, **params}, data) or "")


@pytest.mark.usefixtures("interpreter")
def test_wrapper_refuses_arguments_that_do_not_fit() -> None:
    from gpucheck.checks.kernels.paged_attention_kernel import paged_attention

    q, cache = torch.zeros(2, 4, 64), torch.zeros(3, 16, 2, 64)
    table, lengths = torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="do not fit together"):
        paged_attention(q, cache[..., :32], cache[..., :32], table, lengths)
    with pytest.raises(ValueError, match="must share their dtype"):
        paged_attention(q, cache.half(), cache.half(), table, lengths)
    with pytest.raises(ValueError, match="a row for each of the 2 sequences"):
        paged_attention(q, cache, cache, table[:1], lengths)
    assert paged_attention(q[:0], cache, cache, table[:0], lengths[:0]).shape == (0, 4, 64)
