"""Late inputs with a stand-in for the device's stream: what a launch sees that waits, and one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from gpucheck.worker import late  # noqa: E402
from gpucheck.worker.arena import Arena  # noqa: E402
from gpucheck.worker.child import Bench, Reply  # noqa: E402
from gpucheck.worker.observe import Observer  # noqa: E402


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was put on the stream, in order."""
    seen: list[str] = []

    @contextmanager
    def device(which: Any) -> Iterator[None]:
        seen.append(f"enter {which}")
        yield
        seen.append("leave")

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: seen.append(f"sleep {cycles}"))
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.uint8])
def test_inputs_are_nan_until_they_are_produced(order: list[str], dtype: torch.dtype) -> None:
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    held = whole.t()  # strides other than row-major
    produce = late.hold_back([held], torch.device("cuda", 1))
    bits = held.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize])
    assert set(bits.flatten().tolist()) == {255 if dtype.itemsize == 1 else -1}
    if dtype.is_floating_point:
        assert bool(held.float().isnan().all())
    assert order == []
    produce()
    assert torch.equal(held.float(), torch.arange(24).reshape(4, 6).to(dtype).t().float())
    assert order == ["enter cuda:1", f"sleep {late.DELAY}", "leave"]


class Stream:
    """A check whose kernel reads its input at its launch, or behind what is on the input's stream."""

    late_inputs = ("x", "absent")

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits
        self.late: Any = None
        self.launches = 0
        self.made: list[int] = []

    def prepare(self, case: Any, inputs: dict[str, Any], runtime: Any) -> Any:
        return inputs

    def kernels(self, case: Any, runtime: Any) -> tuple[str, ...]:
        return ()

    def launch(self, case: Any, prepared: Any, runtime: Any) -> dict[str, Any]:
        self.launches += 1
        if self.waits and self.late:
            self.late()
        y = torch.empty(4)
        self.made.append(y.data_ptr())
        y.copy_(prepared["x"])
        return {"y": y}


@pytest.fixture
def bench() -> Bench:
    made: Bench = object.__new__(Bench)
    made.device, made.observer = torch.device("cpu"), Observer()
    made.arena = Arena(made.device)
    made._library = None
    return made


@pytest.mark.parametrize("waits", [True, False])
def test_a_kernel_that_does_not_wait_reads_nan(bench: Bench, monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    check = Stream(waits=waits)

    def hold_back(inputs: Any, device: Any) -> Any:
        (x,) = inputs
        real = x.clone()
        x.fill_(torch.nan)
        check.late = lambda: x.copy_(real)
        return lambda: None  # on the stream, behind the delay

    monkeypatch.setattr(late, "hold_back", hold_back)
    case: Any = SimpleNamespace()
    reply = Reply("ran")
    _, outputs = bench._one_pass(check, case, {"x": torch.arange(4.0)}, reply, 0xFF, late=True)
    y = outputs["y"]
    assert check.launches == 2, "one rehearsal, so that nothing is left to compile"
    assert torch.equal(y, torch.arange(4.0)) if waits else bool(y.isnan().all())
    assert reply.guards == [] and len(bench.arena) == 3, "x, and y of both launches, stay watched"


def test_memory_of_the_second_launch_is_filled_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(torch.device("cpu"))
    arena.reset(0xFF)
    forms = [((4,), (1,), torch.float32), ((2, 2), (2, 1), torch.int32), ((4,), (1,), torch.float32)]
    first = [arena.empty(*form) for form in forms]
    arena.reserve()
    monkeypatch.setattr(torch, "full", None)  # no further filling
    again = [arena.empty(*form) for form in (forms[1], forms[0], forms[2])]
    assert len({tensor.data_ptr() for tensor in (*first, *again)}) == 6
    assert all(bool((tensor.view(torch.int32) == -1).all()) for tensor in again)
    monkeypatch.undo()
    assert arena.empty(*forms[0]).shape == (4,), "a form that was not rehearsed is made on the spot"
    arena.reserve()
    arena.reset(0x00)
    assert bool((arena.empty(*forms[0]) == 0).all()), "a reset forgets what is reserved"
