"""Settings that a call leaves changed are told with both values, and put back."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck.worker.device import process_settings
from gpucheck.worker.device.process_settings import TORCHS_OWN, restored_settings

CPU = torch.device("cpu")


def told(change: Callable[[], Any], *, shared: bool = False, device: Any = CPU) -> list[str]:
    """What is told of a change, and that nothing is left of it."""
    words: list[str] = []
    with restored_settings(device, words.append, shared=shared):
        change()
    again: list[str] = []
    with restored_settings(device, again.append, shared=shared):
        pass
    assert again == []
    return words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: torch.set_default_dtype(torch.bfloat16), "default dtype was torch.float32 before the call and is "),
        (lambda: torch.set_default_device("meta"), "default device was cpu before the call and is meta after it"),
        (lambda: torch.set_grad_enabled(False), "gradient mode was True before"),
        (lambda: torch.rand(1), "random state of torch on the CPU is another one"),
        (lambda: torch.manual_seed(5), "random state of torch on the CPU is another one"),
        (lambda: random.random(), "random state of Python is another one"),
        (lambda: torch.use_deterministic_algorithms(True, warn_only=True), "deterministic algorithms was (False, Fal"),
        (lambda: torch.set_float32_matmul_precision("high"), "float32 matmul precision was highest before"),
        (lambda: setattr(torch.backends.cudnn, "benchmark", True), "torch.backends.cudnn.benchmark was False before"),
        (lambda: os.environ.update(A_SECRET="value"), "environment variable set: A_SECRET"),
        (lambda: os.environ.pop("HOME"), "environment variable removed: HOME"),
        (lambda: os.environ.update(HOME="/elsewhere"), "environment variable changed: HOME"),
        (lambda: os.chdir("/"), "working directory was "),
        (lambda: torch.set_autocast_enabled("cpu", True), "autocast of cpu was False"),
        (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "number of torch's threads was "),
    ],
)
def test_a_change_is_told_and_undone(change: Callable[[], Any], words: str) -> None:
    def now() -> Any:
        mine = {name: value for name, value in os.environb.items() if not name.startswith(TORCHS_OWN)}
        return torch.get_default_dtype(), torch.get_default_device(), mine, Path.cwd()

    before = now()
    lines = told(change)
    assert any(line.startswith(words) for line in lines), lines
    assert not any("value" in line for line in lines), "values of variables may be secrets"
    assert before == now()


def test_nothing_is_told_of_a_call_that_puts_back_what_it_changes() -> None:
    def restored() -> None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.rand(3)

    assert told(restored) == []
    assert told(lambda: os.environ.update(_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR="1")) == []
    assert told(lambda: os.environ.update(TORCHINDUCTOR_CACHE_DIR="x")) == [], (
        "torch sets it when it loads its compiler"
    )


def test_among_threads_only_what_each_thread_has_for_itself_is_told() -> None:
    def both() -> None:
        torch.rand(1)
        torch.set_grad_enabled(False)

    assert told(both, shared=True) == ["gradient mode was True before the call and is False after it"]


def test_what_a_call_that_raises_leaves_is_put_back_as_well() -> None:
    words: list[str] = []
    with pytest.raises(ValueError), restored_settings(CPU, words.append, shared=False):
        torch.set_default_dtype(torch.float64)
        raise ValueError
    assert torch.get_default_dtype() is torch.float32 and len(words) == 1


def test_a_gpu_has_a_device_a_stream_and_a_random_state_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[str, Any] = {"device": 1, "stream": 7, "state": torch.zeros(16, dtype=torch.uint8)}
    put: dict[str, Any] = {}
    stand_in = SimpleNamespace(
        current_device=lambda: now["device"],
        set_device=lambda value: now.update(device=value),
        current_stream=lambda device: SimpleNamespace(cuda_stream=now["stream"]),
        ExternalStream=lambda value, device: value,
        default_stream=lambda device: 0,
        set_stream=lambda value: now.update(stream=value),
        get_rng_state=lambda device: now["state"],
        set_rng_state=lambda value, device: put.update(state=value.clone()) or now.update(state=value),
    )
    monkeypatch.setattr(process_settings.torch, "cuda", stand_in)
    change = lambda: now.update(device=0, stream=8, state=torch.ones(16, dtype=torch.uint8))  # noqa: E731
    assert told(change, device=torch.device("cuda", 1)) == [
        "current device was 1 before the call and is 0 after it",
        "current stream of cuda:1 was 7 before the call and is 8 after it",
        "random state of cuda:1 is another one than before the call",
    ]
    assert now["device"] == 1 and now["stream"] == 7 and not put["state"].any()
    others = {"current_stream": lambda device: None, "get_rng_state": lambda device: None}
    assert told(lambda: vars(stand_in).update(others), device=torch.device("cuda", 1)) == []
