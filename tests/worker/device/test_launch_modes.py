"""What launches do when a supervisor wants to know whether an answer comes from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
torch = pytest.importorskip("torch", reason="needs torch")

from gpucheck.triton_hooks import interpreter  # noqa: E402

interpreter.install()

from gpucheck.worker.device import launch_modes, stream_stress  # noqa: E402
from gpucheck.worker.protocol import CHANGED, DELAYED, IDLE, RUN  # noqa: E402

tl: Any = None  # Triton's language, which a kernel finds here once a test has loaded it


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what goes around the launches of this process."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for kind in (JITFunction, InterpretedFunction):
        for name in ("run", "__getitem__"):
            monkeypatch.setattr(kind, name, vars(kind).get(name, getattr(kind, name)))
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", torch.cuda.CUDAGraph.replay)
    yield


@pytest.fixture
def store(kinds: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kernel that writes four values to its first argument and reads none."""
    import triton.language

    def store(x_ptr, value):  # type: ignore[no-untyped-def]
        place = tl.arange(0, 4)
        tl.store(x_ptr + place, value + place)

    monkeypatch.setitem(store.__globals__, "tl", triton.language)
    return triton.jit(store)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_idle_launches_write_nothing_and_changed_ones_leave_other_values(store: Any, dtype: Any) -> None:
    launches = launch_modes.install()
    seen = {}
    for mode in (RUN, IDLE, CHANGED, RUN):
        launches.choose(mode)
        x = torch.full((6,), -1, dtype=dtype)
        store[(1,)](x, 1)
        store.run(x, 1, grid=(1,), warmup=True)
        seen[mode] = x.tolist()
    assert seen[RUN] == [1, 2, 3, 4, -1, -1] and seen[IDLE] == [-1] * 6
    assert seen[CHANGED] == ([-0.75, 3, 1.5, -5, -1, -1] if dtype.is_floating_point else [-1] * 6)
    assert launches.count() == 4, "what only compiles is no launch"


def test_a_process_can_begin_with_idle_launches(store: Any) -> None:
    x = torch.zeros(4)
    launch_modes.install(IDLE)
    store.run(x, 1.0, grid=(1,), warmup=False)
    assert x.tolist() == [0.0] * 4


def test_delayed_launches_come_behind_a_delay_on_their_own_stream(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, delays = torch.zeros(4), []
    monkeypatch.setattr(stream_stress, "delay_launches", lambda: delays.append(x.tolist()))
    launches = launch_modes.install()
    launches.choose(DELAYED)
    store[(1,)](x, 1.0)
    assert delays == [[0.0] * 4] and x.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_compiled_kernels_are_idle_before_they_reach_the_compiler(kinds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.jit import JITFunction

    launched: list[Any] = []
    kernel = JITFunction.__new__(JITFunction)
    kernel.fn = SimpleNamespace(__name__="fast")
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **kwargs: launched.append(args))
    launches = launch_modes.install(IDLE)
    kernel[(1,)](4)
    launches.choose(RUN)
    kernel[(1,)](5)
    assert launched == [(5,)]


def test_replays_of_graphs_count_and_do_nothing_where_launches_do_nothing(
    kinds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed: list[str] = []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replayed.append)
    launches = launch_modes.install()
    replay: Callable[..., None] = torch.cuda.CUDAGraph.replay
    replay("graph")
    launches.choose(IDLE)
    replay("graph")
    assert (replayed, launches.count()) == (["graph"], 2)
