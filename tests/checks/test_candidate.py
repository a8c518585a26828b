"""A candidate on its device: it has the weights of the model, and its inputs and nothing of what is right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gpucheck.checks.base import Allowed
from gpucheck.checks.candidate import Candidate
from gpucheck.checks.torch_model import draw, draw_inputs, side_effects
from gpucheck.checks.torch_reference import Reference
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.tools.compile.compile_process import CompileRuntime

pytest.importorskip("triton")


class Model(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.register_buffer("shift", torch.ones(size))

    def forward(self, x: Any) -> Any:
        return self.linear(x) + self.shift


class Renamed(nn.Module):
    """Draws alike under other names."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)
        self.register_buffer("shift", torch.zeros(size))

    def forward(self, x: Any) -> Any:
        return self.inner(x) + self.shift


def module_of(candidate: type[nn.Module]) -> Any:
    return SimpleNamespace(
        Model=Model, ModelNew=candidate, get_inputs=lambda: [torch.randn(4, 3)], get_init_inputs=lambda: [3]
    )


class Noting(CompileRuntime):
    def __init__(self) -> None:
        super().__init__("", "")
        self.notes: list[str] = []
        self.blamed: list[tuple[str, str]] = []

    def place(self, tensor: Any) -> Any:
        return torch.clone(tensor)

    def report_violation(self, kind: ViolationKind, detail: str) -> None:
        self.blamed.append((kind, detail))

    def note(self, text: str) -> None:
        self.notes.append(text)


def candidate_of(kind: type[nn.Module]) -> tuple[Candidate, dict[str, Any], list[str], list[tuple[str, str]]]:
    module = module_of(kind)
    inputs = draw(module, 3)
    runtime = Noting()
    return Candidate(module, inputs, 3, runtime), inputs, runtime.notes, runtime.blamed


@pytest.mark.parametrize("kind", [Model, Renamed])
def test_weights_are_the_models_by_name_or_by_draw(kind: type[nn.Module]) -> None:
    candidate, inputs, notes, blamed = candidate_of(kind)
    out = candidate.answer()["out"]
    with torch.no_grad():
        right = inputs["input0"] @ inputs["state.linear.weight"].T + inputs["state.linear.bias"] + 1
    assert torch.allclose(out, right, atol=1e-6)
    words = "ModelNew drew weights itself that Model does not have alike: inner.weight, inner.bias"
    assert notes == ([words] if kind is Renamed else [])
    assert blamed == []


class InPlace(nn.Module):
    """Works in place, keeps statistics and returns a view."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x.mul_(self.weight).add_(1), x[:, 1:], self.weight.clone()


def test_a_model_that_keeps_statistics_in_buffers_has_a_reference() -> None:
    """Each run of it begins with a copy of its own, which draws no roundings."""
    module = SimpleNamespace(Model=InPlace, get_inputs=lambda: [torch.randn(4, 3)], get_init_inputs=lambda: [3])
    expected = Reference(module, draw(module, 3), 3).expected(None, "derived")
    assert set(expected) == {"out0", "out1", "out2"} and expected["out2"].estimate.error is None


def test_what_a_model_does_itself_is_allowed() -> None:
    module = SimpleNamespace(
        Model=InPlace, get_inputs=lambda: [torch.randn(4, 3), torch.randn(2)][:1], get_init_inputs=lambda: [3]
    )
    inputs = draw(module, 3)
    before = {name: value.clone() for name, value in inputs.items()}
    allowed = side_effects(module, inputs, 3, torch.device("cpu"))
    assert allowed == Allowed(frozenset({"input0", "state.calls"}), frozenset({"out0", "out1"}), frozenset({"out1"}))
    assert all(torch.equal(value, inputs[name]) for name, value in before.items())
    assert side_effects(module_of(Model), draw(module_of(Model), 3), 3, torch.device("cpu")) == Allowed()


def test_another_call_has_other_inputs_and_the_same_weights() -> None:
    candidate, inputs, _, _ = candidate_of(Model)
    other = draw_inputs(module_of(Model), 4)
    with torch.no_grad():
        right = other["input0"] @ inputs["state.linear.weight"].T + inputs["state.linear.bias"] + 1
    assert torch.allclose(candidate.call(other)["out"], right, atol=1e-6)
    assert not torch.equal(candidate.answer()["out"], candidate.call(other)["out"])


def test_the_model_itself_is_timed_as_a_candidate_of_its_own() -> None:
    inputs = draw(module_of(Renamed), 3)
    model = Candidate(module_of(Renamed), inputs, 3, Noting(), "Model")
    assert torch.equal(model.answer()["out"], candidate_of(Model)[0].answer()["out"])
