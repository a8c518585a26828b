"""The attention check: its data, its reference and its spec hold; its kernel is in ``test_kernels.py``."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks import attention
from gpucheck.checks.attention import Attention, block_rows, visible
from gpucheck.model.case import Case
from gpucheck.tools.compile.compile_process import CompileRuntime
from gpucheck.verify import bounds

CHECK = Attention()
RUNTIME = CompileRuntime("", "")
SMALL: dict[str, Any] = {"q_heads": 4, "kv_heads": 2, "q_len": 33, "k_len": 95}
WINDOW: dict[str, Any] = {**SMALL, "mask": "window", "window": 20}


def case_of(data: str, **params: Any) -> Case:
    case = CHECK.spec.case(params, data, 7)
    assert CHECK.reason_against(case.params, data) is None
    return case


def inputs_of(case: Case) -> dict[str, Tensor]:
    return CHECK.inputs(case, torch.Generator().manual_seed(case.input_seed))


@pytest.mark.usefixtures("interpreter")
def test_launched_kernel_has_the_name_the_check_gives() -> None:
    from gpucheck.triton_hooks.interpreter import launch

    names: list[str] = []

    def observe(name: str, *_: object) -> None:
        names.append(name)

    case = case_of("exact", q_len=3, k_len=3)
    launch.observers.append(observe)
    try:
        CHECK.launch(case, inputs_of(case), RUNTIME)
    finally:
        launch.observers.remove(observe)
    assert tuple(names) == CHECK.kernels(case, RUNTIME)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("shapes", "dtypes", "message"),
    [
        (((1, 4, 8, 32), (1, 2, 8, 32)), ("float16", "float16"), "head_dim must be 64 or 128, not 32"),
        (((1, 4, 8, 64), (1, 3, 8, 64)), ("float16", "float16"), "4 query heads cannot share 3 kv heads"),
        (((1, 4, 8, 64), (2, 2, 8, 64)), ("float16", "float16"), "do not fit together"),
        (((1, 4, 8, 64), (1, 2, 8, 64)), ("float16", "bfloat16"), "must share bf16, fp16 or fp32"),
        (((1, 4, 8, 64), (1, 2, 8, 64)), ("float64", "float64"), "must share bf16, fp16 or fp32"),
    ],
)
def test_wrapper_refuses_arguments_that_do_not_fit(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], dtypes: tuple[str, str], message: str
) -> None:
    from gpucheck.checks.kernels.flash_attention_kernel import flash_attention

    q, k = (torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in zip(shapes, dtypes, strict=True))
    with pytest.raises(ValueError, match=message):
        flash_attention(q, k, k, causal=True)


@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize("params", [SMALL, WINDOW, {**SMALL, "mask": "full", "head_dim": 128}])
def test_reference_agrees_with_torch(params: dict[str, Any], data: str) -> None:
    case = case_of(data, **params)
    inputs = inputs_of(case)
    mask = torch.zeros(33, 95, dtype=torch.bool)
    for query in range(33):
        position = query + 62
        for key in range(95):
            late = case["mask"] != "full" and key > position
            early = case["mask"] == "window" and key <= position - 20
            mask[query, key] = not late and not early
    assert torch.equal(visible(case), mask)
    q, k, v = (inputs[name].double() for name in "qkv")
    k, v = (tensor.repeat_interleave(2, 1) for tensor in (k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(CHECK.reference(case, inputs)["o"].estimate.value, wanted, rtol=1e-12, atol=1e-12)


def test_reference_counts_the_sink() -> None:
    case = case_of("normal", sinks=True, **SMALL)
    inputs = inputs_of(case)
    head = 3
    q, k, v = inputs["q"][0, head].double(), inputs["k"][0, 1].double(), inputs["v"][0, 1].double()
    logits = torch.where(visible(case), q @ k.mT / 8, -torch.inf)
    weights = torch.exp(logits) / (torch.exp(logits).sum(1, keepdim=True) + torch.exp(inputs["sinks"][head].double()))
    value = CHECK.reference(case, inputs)["o"].estimate.value
    torch.testing.assert_close(value[0, head], weights @ v, rtol=1e-12, atol=1e-12)


def test_exact_output_is_one_value_row_or_zero() -> None:
    case = case_of("exact", sinks=True, **SMALL)
    inputs = inputs_of(case)
    estimate = CHECK.reference(case, inputs)["o"].estimate
    assert estimate.exact
    assert not estimate.value[0, 1].any()
    for head in (0, 2, 3):
        rows = {tuple(row) for row in inputs["v"][0, head // 2].tolist()}
        assert all(tuple(row) in rows for row in estimate.value[0, head].tolist())


def test_data_that_is_not_exact_is_refused() -> None:
    case = case_of("exact", **SMALL)
    inputs = inputs_of(case)
    inputs["q"] = inputs["q"] / 4
    with pytest.raises(ValueError, match="exact data has a second weight of 2\\^-"):
        CHECK.reference(case, inputs)


@pytest.mark.parametrize("data", ["exact", "normal"])
def test_equal_seeds_give_equal_bytes(data: str) -> None:
    case = case_of(data, sinks=True, **SMALL)
    first, second = inputs_of(case), inputs_of(case)
    assert first.keys() == second.keys() == {"q", "k", "v", "sinks"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = CHECK.spec.case(case.params, data, 8)
    assert not torch.equal(first["q"], inputs_of(other)["q"])


def test_id_names_what_matters() -> None:
    case = case_of("exact", sinks=True, **{**WINDOW, "dtype": "fp16"})
    assert case.id == "attention/window/fp16/b1-h4-kv2-q33-k95-d64-window20-sinks/exact"


@pytest.mark.parametrize(
    ("q_len", "dtype", "rows"), [(1, "bf16", 16), (33, "bf16", 64), (1024, "fp16", 128), (64, "fp32", 32)]
)
def test_axes_name_the_tile_of_the_kernel(q_len: int, dtype: str, rows: int) -> None:
    case = case_of("normal", q_len=q_len, dtype=dtype)
    assert block_rows(case) == rows
    axes = CHECK.axes(case, {})["o"]
    assert axes.names == ("batch", "head", "query", "dimension")
    assert axes.tile == (0, 0, rows, 0)


def test_importing_the_check_imports_neither_torch_nor_triton() -> None:
    code = "import sys, gpucheck.checks.attention; print(sorted({'torch', 'triton', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("rows", [3, 5, 24, 1000])
def test_heads_side_by_side_are_heads_one_by_one(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """However many queries of however many heads go through the formula at a time, each with the sink of its head."""
    monkeypatch.setattr(attention, "REFERENCE_ROWS", rows)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(size, generator=generator).bfloat16() for size in ((4, 10, 64), (30, 64), (30, 64)))
    sinks, allowed = torch.randn(4, generator=generator), torch.ones((10, 30), dtype=torch.bool)
    together = attention.heads(q, k, v, allowed, sinks=sinks)
    assert together.error is not None
    for head in range(4):
        alone = bounds.attention(
            q[head].double(),
            k.double(),
            v.double(),
            allowed,
            scale=64**-0.5,
            dtype=torch.bfloat16,
            sink=float(sinks[head]),
        )
        assert alone.error is not None
        assert torch.allclose(together.value[head], alone.value, rtol=1e-12, atol=1e-12)
        assert torch.allclose(together.error[head], alone.error, rtol=1e-4)
