"""The kernels of our own checks: they are right in memory filled with either byte, and each planted fault shows."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from gpucheck.checks import kernels, load
from gpucheck.checks.attention import MOST_EXACT_KEYS
from tests.checks.conftest import CheckRunner, Twin

Params = dict[str, Any]
MODULES = {
    "attention": "flash_attention_kernel",
    "paged_attention": "paged_attention_kernel",
    "selection_attention": "selection_attention_kernel",
    "softmax": "softmax_kernel",
    "weighted_matmul": "weighted_matmul_kernel",
}
"""Check -> the module of its kernel, of which a twin with a fault is made."""

SMALL: Params = {"q_heads": 4, "kv_heads": 2, "q_len": 33, "k_len": 95}
WINDOW: Params = {**SMALL, "mask": "window", "window": 20}
GROUPED: Params = {"q_heads": 4, "kv_heads": 2}
SINKS: Params = {**GROUPED, "sinks": True}
DENSE: Params = {"q_len": 10, "k_len": 300}
VARIABLE: Params = {"lengths": "variable", "batch": 3, "q_len": 12, "k_len": 260}
MASKED: Params = {"m": 33, "n": 70, "masked": True}
BATCHES: Params = {"batch": 3, "m": 33, "k": 75, "n": 40}

RIGHT: dict[str, list[Params]] = {
    "attention": [
        {**params, "dtype": dtype}
        for dtype in ("bf16", "fp16", "fp32")
        for params in (
            SMALL,
            {**SMALL, "head_dim": 128, "sinks": True},
            {**SMALL, "mask": "full", "k_len": 65},
            {**WINDOW, "sinks": True},
            {**WINDOW, "head_dim": 128, "window": 1},
            {**SMALL, "q_len": 70, "k_len": 33},  # the first queries see nothing
            {**SMALL, "q_len": 70, "k_len": 33, "sinks": True},
            {**SMALL, "q_len": 1, "k_len": 1},
            {"batch": 2, "q_heads": 2, "q_len": 1, "k_len": 129},
            {"batch": 2, "q_heads": 2, "q_len": 150, "k_len": 301, "mask": "window", "window": 129, "sinks": True},
        )
    ],
    "paged_attention": [
        {},
        {"dtype": "fp16"},
        {"dtype": "fp32"},
        {**SINKS, "batch": 7, "k_len": 150, "page": 32},
        {**SINKS, "batch": 6, "k_len": 130, "page": 128, "head_dim": 128, "dtype": "fp32"},
        {"batch": 1, "k_len": 1},
        {"q_heads": 34, "kv_heads": 2, "k_len": 64},
    ],
    "selection_attention": [
        DENSE,
        {**DENSE, "dtype": "fp16"},
        {**DENSE, "dtype": "fp32"},
        {**VARIABLE, "q_heads": 4, "kv_heads": 2},
        {"batch": 2, "q_heads": 17, "q_len": 2, "k_len": 256, "head_dim": 128, "slots": 1, "dtype": "fp32"},
        {"q_len": 9, "k_len": 5},  # the first queries stand before the first key
        {"q_len": 1, "k_len": 1},
        {"q_len": 8, "k_len": 170, "block": 32, "slots": 6},
    ],
    "softmax": [
        {},
        {"m": 1, "n": 1, "dtype": "fp16"},
        MASKED,
        {**MASKED, "dtype": "bf16"},
        {**MASKED, "dtype": "fp16"},
        {"m": 5, "n": 3000, "masked": True},
    ],
    "weighted_matmul": [
        {},
        {"m": 1, "k": 1, "n": 1, "dtype": "fp16"},
        {**BATCHES, "dtype": "bf16"},
        {**BATCHES, "dtype": "fp16"},
        {"m": 70, "k": 300, "n": 65},
    ],
}


@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize(
    ("name", "params"),
    [(name, params) for name, each in RIGHT.items() for params in each],
    ids=lambda part: "-".join(f"{key}{value}" for key, value in part.items()) if isinstance(part, dict) else part,
)
def test_kernel_is_right(name: str, params: Params, data: str, runner: CheckRunner) -> None:
    check = load(name)
    case = runner.case(check, data, params)
    first, second = (runner.run(check, case, fill=fill) for fill in (0xFF, 0x00))
    assert first.right, first
    assert all(torch.equal(first.outputs[output], second.outputs[output]) for output in first.outputs)


SEEN, KEYS, SINK = "keys[None, :] <= positions[:, None]", "keys[None, :] < window", "SINKS=sinks is not None"
SCALED = "accumulator = accumulator * carried[:, None]"
DOT = 'accumulator += tl.dot(weights.to(v.dtype), v, input_precision="ieee")'
PRODUCT = 'accumulator += tl.dot(weights, values, input_precision="ieee")'
IN_FP16 = "accumulator = accumulator.to(tl.float16).to(tl.float32)"
FULL: Params = {**SMALL, "mask": "full"}
FP32: Params = {"dtype": "fp32"}


@pytest.mark.parametrize(
    ("name", "data", "params", "right", "wrong", "region"),
    [
        ("attention", "exact", SMALL, SEEN, f"{SEEN} + 1", ""),
        ("attention", "exact", SMALL, SEEN, SEEN.replace("<=", "<"), ""),
        ("attention", "exact", SMALL, "positions = rows + (k_len - q_len)", "positions = rows", ""),
        ("attention", "exact", WINDOW, KEYS, "keys[None, :] <= window", ""),
        ("attention", "exact", WINDOW, KEYS, "keys[None, :] < window - 1", ""),
        ("attention", "exact", WINDOW, KEYS, "keys[None, :] < k_len", ""),
        ("attention", "exact", {**WINDOW, "k_len": 150}, "// BLOCK_N * BLOCK_N", "// BLOCK_N * BLOCK_N + BLOCK_N", ""),
        ("attention", "exact", SMALL, "range(first_key, end_key, BLOCK_N)", "range(first_key, end_key - BLOCK_N, "
         "BLOCK_N)", ""),
        ("attention", "exact", FULL, "(keys < k_len)[None, :]", "(keys >= 0)[None, :]", ""),
        ("attention", "normal", FULL, "(keys < k_len)[None, :]", "(keys >= 0)[None, :]", ""),
        ("attention", "exact", SMALL, "kv_head = head // heads_per_group", "kv_head = head % heads_per_group", ""),
        ("attention", "exact", SMALL, SCALED, "accumulator = accumulator", ""),
        ("attention", "exact", {**SMALL, "sinks": True}, SINK, "SINKS=False", ""),
        ("attention", "normal", {**SMALL, "sinks": True}, SINK, "SINKS=False", ""),
        ("attention", "normal", {**SMALL, "sinks": True}, "tl.load(sink_ptr + head)", "tl.load(sink_ptr)", ""),
        ("attention", "normal", SMALL, "scale = head_dim**-0.5", "scale = 0.99 * head_dim**-0.5", ""),
        ("attention", "normal", SMALL, 'tl.dot(q, k, input_precision="ieee")',
         'tl.dot(q, k, input_precision="ieee").to(q.dtype)', ""),
        ("attention", "normal", SMALL, "other=0.0)\n        scores",
         "other=0.0) * (keys[:, None] != 40)\n        scores", ""),
        ("paged_attention", "exact", {}, "tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=seen, "
         "other=0)", "(keys // PAGE)", "all 4 sequences"),  # the table is ignored
        ("paged_attention", "exact", {}, "sequence * table_stride", "0 * table_stride", "sequences"),
        ("paged_attention", "exact", {}, "range(0, length,", "range(0, length // PAGE * PAGE,", "sequence 1 of 4"),
        ("paged_attention", "exact", {}, "seen = keys < length", "seen = keys < length - 1", "sequences"),
        ("paged_attention", "exact", GROUPED, "* slot_stride + kv_head * head_stride", "* slot_stride",
         "heads 2-3 of 4"),
        ("paged_attention", "normal", SINKS, "sink_ptr + heads", "sink_ptr + group", "heads 2-3 of 4"),
        ("paged_attention", "normal", SINKS, SINK, "SINKS=False", "all 4 heads"),
        ("paged_attention", "exact", {}, SCALED, "accumulator = accumulator", "sequence"),
        ("paged_attention", "normal", FP32, DOT, f"{DOT}\n        {IN_FP16}", "all 8 heads"),
        ("selection_attention", "exact", DENSE, "seen = keys < end", "seen = keys <= end", "queries"),
        ("selection_attention", "exact", DENSE, "seen = keys < end", "seen = keys < end - 1", "queries"),
        # beyond the query's own position
        ("selection_attention", "exact", DENSE, "seen = keys < end", "seen = keys < k_len", "queries"),
        ("selection_attention", "exact", DENSE, "range(slots)", "range(slots - 1)", "queries"),
        ("selection_attention", "normal", DENSE, "range(begin, end, BLOCK_L)", "range(begin, end // BLOCK_L * BLOCK_L, "
         "BLOCK_L)", "queries"),
        ("selection_attention", "exact", DENSE, "range(begin, end, BLOCK_L)", "range(begin, begin + BLOCK_L, BLOCK_L)",
         "quer"),
        ("selection_attention", "exact", VARIABLE, "places = (first_key + keys)", "places = (0 + keys)",
         "touching sequences 1, 2"),
        ("selection_attention", "exact", {**DENSE, "batch": 2}, "first_key = sequence * k_len", "first_key = 0",
         "touching sequence 1"),
        ("selection_attention", "exact", {**DENSE, "kv_heads": 2}, "v_ptr + kv_head * v_head_stride", "v_ptr",
         "heads 2-3 of 4"),
        ("selection_attention", "exact", DENSE, SCALED, "accumulator = accumulator", "queries"),
        ("selection_attention", "normal", {**DENSE, **FP32}, DOT, f"{DOT}\n            {IN_FP16}", "all 4 heads"),
        ("selection_attention", "normal", DENSE, "head_dim**-0.5", "0.98 * head_dim**-0.5", "all 4 heads"),
        ("weighted_matmul", "exact", {"k": 75}, "range(0, keys,", "range(0, keys // BLOCK_K * BLOCK_K,",
         "all 32 columns"),
        ("weighted_matmul", "exact", {"k": 75}, "range(0, keys,", "range(BLOCK_K, keys,", "all 32 columns"),
        ("weighted_matmul", "exact", {"batch": 2}, "batch * values_batch_stride", "0 * values_batch_stride",
         "batch 1 of 2"),
        ("weighted_matmul", "normal", {"k": 200}, PRODUCT, f"{PRODUCT}.to(tl.bfloat16)", "all 32 queries"),
        ("weighted_matmul", "normal", {"k": 200}, PRODUCT, f"{PRODUCT}\n        {IN_FP16}", "all"),
    ],
)  # fmt: skip
def test_wrong_twin_is_caught(
    name: str, data: str, params: Params, right: str, wrong: str, region: str, runner: CheckRunner, twin: Twin
) -> None:
    check = load(name)
    case = runner.case(check, data, params)
    assert runner.run(check, case).right
    twin(import_module(f"gpucheck.checks.kernels.{MODULES[name]}"), right, wrong)
    found = runner.run(check, case).mismatches
    assert set(found) == {"o"} and region in found["o"].region


OUT = "tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=rows[:, None] < q_len"
ROWS = "for start in range(0, columns"
PAGED = "tl.store(out_rows + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=inside[:, None]"
STORED = "mask=(row[:, None] < rows) & (column[None, :] < columns))"


@pytest.mark.parametrize(
    ("name", "params", "right", "wrong", "region", "count"),
    [
        ("attention", {"q_heads": 1, "q_len": 150}, OUT, f"{OUT} // BLOCK_M * BLOCK_M",
         "the only batch, the only head, queries 128-149 of 150, all 64 dimensions, tile (1,) of 2", 22 * 64),
        ("paged_attention", GROUPED, PAGED, PAGED.replace("inside[:, None]", "(group < heads_per_group - 1)[:, None]"),
         "all 4 sequences, 2 of 4 heads (1, 3), all 64 dimensions", 4 * 2 * 64),
        ("softmax", {"m": 10, "n": 1100}, f"total)\n    {ROWS}", f"total)\n    {ROWS} - BLOCK_N",
         "all 10 rows, columns 1024-1099 of 1100, 3 of 6 tiles", 10 * 76),
        ("weighted_matmul", {"batch": 2, "m": 70}, STORED, STORED[:-1] + " & (tl.program_id(0) < 1))",
         "all 2 batches, queries 64-69 of 70, all 32 columns, tile (1, 0) of 2", 2 * 6 * 32),
    ],
)  # fmt: skip
def test_a_tile_never_stored_still_holds_the_poison(
    name: str, params: Params, right: str, wrong: str, region: str, count: int, runner: CheckRunner, twin: Twin
) -> None:
    check = load(name)
    twin(import_module(f"gpucheck.checks.kernels.{MODULES[name]}"), right, wrong)
    (found,) = runner.run(check, runner.case(check, "exact", params)).mismatches.values()
    assert found.region == region and found.poison == found.wrong == count


@pytest.mark.parametrize(
    ("name", "params", "right", "wrong", "guard"),
    [
        ("attention", {"q_heads": 1, "q_len": 33}, OUT, f"{OUT} + 1", "128 {} bfloat16 tensor of shape (1, 1, 33, 64)"),
        ("paged_attention", GROUPED, PAGED, PAGED.replace("inside[:, None]", "(group <= heads_per_group)[:, None]"),
         "128 {} bfloat16 tensor of shape (4, 4, 64)"),
        ("selection_attention", VARIABLE, "+ 1) - first_query:", "+ 1) - first_query + 1:", "512 {} bfloat16 tensor"),
        ("softmax", {"m": 9, "n": 40}, "element_ty), mask=mask)", "element_ty), mask=inside & (column[None, :] <= "
         "columns))", "4 {} float32 tensor of shape (9, 40)"),
        ("weighted_matmul", {"n": 31}, STORED, STORED.replace("< columns", "<= columns"),
         "4 {} float32 tensor of shape (1, 32, 31)"),
    ],
)  # fmt: skip
def test_a_store_past_the_end_breaks_a_guard(
    name: str, params: Params, right: str, wrong: str, guard: str, runner: CheckRunner, twin: Twin
) -> None:
    check = load(name)
    twin(import_module(f"gpucheck.checks.kernels.{MODULES[name]}"), right, wrong)
    (broken,) = runner.run(check, runner.case(check, "exact", params)).guards
    assert broken.startswith(guard.format("bytes written after the")) and broken.endswith(", nearest 1 off")


@pytest.mark.parametrize(
    ("name", "data", "params", "reason"),
    [
        ("attention", "normal", {"q_heads": 6, "kv_heads": 4}, "q_heads 6 is not a multiple of kv_heads 4"),
        ("attention", "normal", {"mask": "window"}, "mask window needs a window"),
        ("attention", "normal", {"window": 8}, "mask causal takes no window"),
        ("attention", "normal", {"q_len": 0}, "q_len must be at least 1"),
        ("attention", "normal", {"batch": 2000, "q_heads": 64}, "at most 65535"),
        ("attention", "exact", {"k_len": MOST_EXACT_KEYS + 1}, "exact data tells at most"),
        ("paged_attention", "normal", {"batch": 0}, "batch must be at least 1"),
        ("paged_attention", "normal", {"q_heads": 6, "kv_heads": 4}, "q_heads 6 is not a multiple of kv_heads 4"),
        ("paged_attention", "exact", {"k_len": 8193}, "exact data tells at most 8192 keys apart"),
        ("paged_attention", "normal", {"q_heads": 65536, "kv_heads": 65536}, "kv_heads must be at most 65535"),
        ("selection_attention", "normal", {"slots": 0}, "slots must be at least 1"),
        ("selection_attention", "normal", {"q_heads": 6, "kv_heads": 4}, "q_heads 6 is not a multiple of kv_heads 4"),
        ("selection_attention", "exact", {"k_len": 8193}, "exact data tells at most 8192 keys apart"),
        ("selection_attention", "normal", {"batch": 65536}, "batch and kv_heads must be at most 65535"),
        ("softmax", "normal", {"m": 0}, "m must be at least 1, not 0"),
        ("weighted_matmul", "normal", {"k": 0}, "k must be at least 1, not 0"),
        ("weighted_matmul", "normal", {"batch": 65536}, "batch must be at most 65535"),
    ],
)
def test_validate_says_why(name: str, data: str, params: Params, reason: str) -> None:
    check = load(name)
    assert reason in (check.reason_against({**check.spec.defaults, **params}, data) or "")


def test_each_kernel_of_our_own_is_tried_and_its_wrong_twins_are() -> None:
    files = {path.stem for path in Path(str(kernels.__file__)).parent.glob("*_kernel.py")}
    wrong: list[Any] = [test_wrong_twin_is_caught, test_a_tile_never_stored_still_holds_the_poison]
    twins = {values[0] for test in wrong for mark in test.pytestmark for values in mark.args[1]}
    assert files and {*MODULES.values()} == files and {*RIGHT} == {*MODULES} == twins
