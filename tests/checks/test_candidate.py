"""A candidate beside its numbers: its weights, its kernels turned off, its neighbours' kernels left on."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("triton", reason="needs Triton")

from torch import nn  # noqa: E402

from gpucheck.checks.base import Allowed, Runtime  # noqa: E402
from gpucheck.checks.candidate import Candidate, muted  # noqa: E402
from gpucheck.checks.torch_model import conduct, draw  # noqa: E402


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


def candidate_of(kind: type[nn.Module]) -> tuple[Candidate, dict[str, Any], list[str], list[tuple[str, str]]]:
    notes: list[str] = []
    blamed: list[tuple[str, str]] = []
    module = module_of(kind)
    inputs = draw(module, 3)
    runtime = Runtime(
        torch.device("cpu"),
        None,  # type: ignore[arg-type]
        torch.clone,
        blame=lambda kind, detail: blamed.append((kind, detail)),
        note=notes.append,
    )
    return Candidate(module, inputs, 3, runtime), inputs, notes, blamed


@pytest.mark.parametrize("kind", [Model, Renamed])
def test_weights_are_the_models_by_name_or_by_draw(kind: type[nn.Module]) -> None:
    candidate, inputs, notes, blamed = candidate_of(kind)
    out = candidate.answer()["out"]
    with torch.no_grad():
        right = inputs["input0"] @ inputs["state.linear.weight"].T + inputs["state.linear.bias"] + 1
    assert torch.allclose(out, right, atol=1e-6)
    words = "ModelNew drew weights itself that Model does not have alike: inner.weight, inner.bias"
    assert notes == ([words] if kind is Renamed else [])
    candidate.inspect({"out": out.detach()})
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


def test_what_a_model_does_itself_is_allowed() -> None:
    module = SimpleNamespace(
        Model=InPlace, get_inputs=lambda: [torch.randn(4, 3), torch.randn(2)][:1], get_init_inputs=lambda: [3]
    )
    inputs = draw(module, 3)
    before = {name: value.clone() for name, value in inputs.items()}
    allowed = conduct(module, inputs, 3, torch.device("cpu"))
    assert allowed == Allowed(frozenset({"input0", "state.calls"}), frozenset({"out0", "out1"}), frozenset({"out1"}))
    assert all(torch.equal(value, inputs[name]) for name, value in before.items())
    assert conduct(module_of(Model), draw(module_of(Model), 3), 3, torch.device("cpu")) == Allowed()


class Event:
    """Stands in for an event of a GPU whose clock goes on by a millisecond at each call of the model."""

    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: Any) -> None:
        self.at = Event.clock

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, last: Event) -> float:
        return last.at - self.at


def test_a_race_times_both_models_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate, inputs, _, _ = candidate_of(Model)
    timed: dict[str, float] = {}
    candidate._runtime = Runtime(torch.device("cpu"), None, torch.clone, timed=timed.__setitem__)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    seen: list[tuple[str, Any]] = []

    def tick(name: str, milliseconds: float) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            Event.clock += milliseconds
            seen.append((name, out))

        return hook

    model = Model(3)
    model.register_forward_hook(tick("reference", 4.0))
    candidate._model.register_forward_hook(tick("candidate", 2.0))
    candidate.race(model)
    assert timed == {"candidate": 0.002, "reference": 0.004}
    first = dict(reversed(seen))
    assert torch.equal(first["candidate"], first["reference"]) and not first["reference"].requires_grad


def test_launches_of_other_threads_go_on_while_kernels_are_muted(
    interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    import triton.language as tl
    from triton.runtime import interpreter as interpreted

    def store(x_ptr, value):  # type: ignore[no-untyped-def]
        tl.store(x_ptr, value)

    monkeypatch.setitem(store.__globals__, "tl", tl)
    kernel = triton.jit(store)
    assert isinstance(kernel, interpreted.InterpretedFunction)
    x = torch.zeros(2)
    with muted() as called:
        kernel[(1,)](x, 1.0)
        kernel.run(x, 1.0, grid=(1,), warmup=False)
        other = threading.Thread(target=lambda: kernel[(1,)](x[1:], 2.0))
        other.start()
        other.join(30)
    assert called == ["store", "store"] and x.tolist() == [0.0, 2.0]
    kernel[(1,)](x, 3.0)
    assert x.tolist() == [3.0, 2.0]


def test_compiled_kernels_are_muted_before_they_reach_the_compiler() -> None:
    from triton.runtime.jit import JITFunction

    launched: list[Any] = []
    kernel = JITFunction.__new__(JITFunction)
    kernel.fn = SimpleNamespace(__name__="fast")
    launch, item = JITFunction.run, JITFunction.__getitem__
    JITFunction.run = lambda self, *args, **kwargs: launched.append(args)
    try:
        with muted() as called:
            kernel[(1,)](4)
        kernel[(1,)](5)
    finally:
        JITFunction.run = launch
    assert called == ["fast"] and launched == [(5,)] and JITFunction.__getitem__ is item
