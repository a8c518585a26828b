"""Batches of several sizes with the same objects: right ones pass, and what depends on others does not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks.batches import CALLS, FEW, Batches
from gpucheck.checks.moe import Moe
from gpucheck.model.errors import Inapplicable
from gpucheck.verify.judge import judge

PARAMS = {"weight": "bf16", "m": 12, "hidden": 16, "intermediate": 8, "experts": 4, "top_k": 2}
Spoil = Callable[[Tensor, list[int]], Tensor]


def found(spoil: Spoil) -> dict[str, list[list[int]]]:
    """Output -> box of what is wrong, where a block gives the right rows and ``spoil`` changes them.

    It takes the rows of a call and how many rows each call before it had.
    """
    check = Batches()
    case = check.spec.case(PARAMS, "normal", 0)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    expected = check.reference(case, inputs)
    right = expected["all"].estimate.value.to(torch.bfloat16)
    known = {tuple(row.tolist()): right[number] for number, row in enumerate(inputs["x"].float())}
    sizes: list[int] = []

    def block(prepared: Any, x: Tensor, routing: Any, runtime: Any) -> Tensor:
        nothing = torch.full_like(right[0], torch.nan)
        y = torch.stack([known.get(tuple(row.tolist()), nothing) for row in x.float()])
        sizes.append(len(x))
        return spoil(y, sizes[:-1])

    library = SimpleNamespace(routed=lambda *given: None, weight=lambda *given: None, matmul=None, from_tables=None)
    runtime = SimpleNamespace(library=library, place=torch.clone, device=torch.device("cpu"))
    check.block = block  # type: ignore[method-assign]
    outputs = check.launch(case, check.prepare(case, inputs, runtime), runtime)
    assert len(sizes) == CALLS and sizes[:4] == [1, FEW, 12, 1]
    return {item.output: item.box for item in judge(outputs, expected, check.axes(case, inputs)).mismatches}


def test_rows_that_depend_on_nobody_pass() -> None:
    assert found(lambda y, before: y) == {}


def test_state_between_calls_is_found() -> None:
    wrong = found(lambda y, before: y * 2 if before and max(before) > len(y) else y)
    assert set(wrong) == {"again", "same_bits"} and wrong["same_bits"] == [[0, 0]]


def test_nan_of_other_rows_is_found_where_it_leaks() -> None:
    wrong = found(lambda y, before: y + 0 * y[-1])
    assert set(wrong) == {"beside_nan", "same_bits"} and wrong["same_bits"] == [[1, FEW]]


def test_a_row_that_depends_on_its_place_is_found_where_bounds_allow_it() -> None:
    def by_place(y: Tensor, before: list[int]) -> Tensor:
        return torch.cat([y[:-1], y[-1:] * (1 + 2.0**-7)]) if len(y) == 12 else y

    wrong = found(by_place)
    assert wrong["same_bits"][0] == [1 + FEW, FEW + 12], "the first and the last token, in one order or the other"


def test_a_graph_needs_a_gpu_and_a_batch_more_tokens_than_a_few() -> None:
    check = Batches()
    assert "above 7" in str(check.reason_against({**check.spec.defaults, "m": 7}, "normal"))
    case = check.spec.case({**PARAMS, "graph": True}, "normal", 0)
    inputs = check.inputs(case, torch.Generator().manual_seed(0))
    assert set(check.reference(case, inputs)) == {"replayed"} == set(check.axes(case, inputs))
    prepared = {name: inputs[name] for name in ("x", "ids", "id_gates")}
    with pytest.raises(Inapplicable, match="CUDA graphs need a GPU"):
        check.launch(case, prepared, SimpleNamespace(device=torch.device("cpu")))


def test_the_tokens_are_those_of_the_expert_block() -> None:
    case = Batches.spec.case(PARAMS, "normal", 0)
    inputs = Batches().inputs(case, torch.Generator().manual_seed(1))
    plain = Moe().inputs(case, torch.Generator().manual_seed(1))
    assert all(torch.equal(inputs[name], plain[name]) for name in plain)
