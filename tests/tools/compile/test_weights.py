"""Weights and operands while compiling: one is laid out for each form, and the host holds little of large ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck import checks
from gpucheck.checks import no_launch
from gpucheck.checks.no_launch import CompileRuntime
from gpucheck.library import adapters
from gpucheck.library.adapters.base import Weight


class Adapter:
    name = "fake"

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []

    def weight(self, *form: Any) -> int:
        self.made.append(form)
        return len(self.made)


def test_weights_of_one_form_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter()
    monkeypatch.setattr(adapters, "load", lambda root, generation: adapter)
    library = CompileRuntime("/library", "v3.5").library
    codes, scales = torch.zeros(4, 8, 16, dtype=torch.uint8), torch.zeros(4, 1, 16, dtype=torch.uint8)

    def weight(data: Any = codes, scale: Any = scales, kind: str = "mxfp4", layout: str = "default") -> int:
        made: int = library.weight(kind, data, scale, layout, None)
        return made

    assert weight() == weight(torch.ones_like(codes)) == 1, "values are all that differs"
    others = [
        weight(codes[:2]),
        weight(codes.mT.contiguous().mT),
        weight(codes.view(torch.int8)),
        weight(scale=None),
        weight(scale=scales[:, :, :8]),
        weight(kind="fp8_e4m3"),
        weight(layout="strided"),
    ]
    assert others == [2, 3, 4, 5, 6, 7, 8] and len(adapter.made) == 8
    assert library.name == "fake"


class Wrapping:
    """An adapter whose layout has memory for each expert, or one block for all."""

    def __init__(self, *, by_expert: bool) -> None:
        self.by_expert = by_expert
        self.given: list[tuple[int, ...]] = []

    def wrapped(self, data: Any, shape: list[int], dtype: Any = None, layout: Any = None) -> Any:
        return SimpleNamespace(storage=SimpleNamespace(data=data, layout=layout), shape=shape, dtype=dtype)

    def weight(self, kind: str, data: Any, scale: Any, layout: str, place: Any) -> Weight:
        self.given.append(tuple(data.shape))
        held = data.mT.contiguous() if self.by_expert else data.flatten()
        operand = self.wrapped(held, [len(data), 2 * data.shape[1], data.shape[2]], "fp4", layout)
        return Weight(kind, operand, lambda: self.wrapped(scale, list(scale.shape), scale.dtype, layout), None)


@pytest.mark.parametrize("by_expert", [True, False])
def test_of_many_experts_two_are_laid_out_and_the_form_is_that_of_all(
    monkeypatch: pytest.MonkeyPatch, by_expert: bool
) -> None:
    """Layouts of a large model took more memory than there is, so ranks compiled those kernels one after the other."""
    adapter = Wrapping(by_expert=by_expert)
    monkeypatch.setattr(adapters, "load", lambda root, generation: adapter)
    monkeypatch.setattr(no_launch, "LARGE", 0)
    codes, scales = torch.zeros(8, 32, 48, dtype=torch.uint8), torch.zeros(8, 2, 48, dtype=torch.uint8)
    made = CompileRuntime("/library", "v3.5").library.weight("mxfp4", codes, scales, "default", None)
    right = Wrapping(by_expert=by_expert).weight("mxfp4", codes, scales, "default", None)
    for tensor, whole in ((made.operand, right.operand), (made.fresh_scale(), right.fresh_scale())):
        form = ("shape", "dtype")
        assert [getattr(tensor, name) for name in form] == [getattr(whole, name) for name in form]
        assert no_launch._form(tensor.storage.data) == no_launch._form(whole.storage.data)
        assert tensor.storage.layout == "default"
    assert adapter.given == [(2, 32, 48)] + [(8, 32, 48)] * (not by_expert), (
        "what is no layout by experts is made whole"
    )


def test_operands_beyond_32_bits_lie_in_memory_that_the_host_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their kernels were compiled by the ranks at the end, one after the other."""
    monkeypatch.setattr(no_launch, "_standing_in", True)
    monkeypatch.setattr(torch, "empty_strided", no_launch._with_gaps(torch.empty_strided))
    check = checks.load("matmul")
    case = check.spec.case({"m": 4, "n": 8, "k": 32, "operands": "far"}, "exact", 0)
    inputs = check.inputs(case, torch.Generator().manual_seed(0))
    before = resident()
    runtime: Any = SimpleNamespace(
        device=torch.device("cpu"),
        place=lambda tensor: tensor,
        library=SimpleNamespace(weight=lambda *form: form),
    )
    far = check.prepare(case, inputs, runtime)["x"]
    assert far.stride(0) * 3 >= 2**31 and torch.equal(far, inputs["x"])
    assert resident() - before < 1 << 26
    assert torch.empty_strided((2, 3), (4, 1)).stride() == (4, 1)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) << 12
