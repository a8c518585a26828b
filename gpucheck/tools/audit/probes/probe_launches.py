"""Runs small cases with tensors that stand for ones on device 1 while device 0 is current.

Watches on which device the library launches, and on which it allocates what it asks for by the name "cuda".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gpucheck.library.adapters.base import Adapter
from gpucheck.tools.audit.probes.base import Answer, Probing
from gpucheck.tools.audit.probes.probe_devices import PAIRS, two_devices
from gpucheck.triton_hooks.interpreter.launch import observers
from gpucheck.triton_hooks.interpreter.stand_in_driver import watched_guards

Devices = dict[tuple[str, int], set[int]]
"""Numbers of devices by file within the library and line."""


def guard(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Whether the launch happened on device 0."""
    return _answer(_observed(probing).launches, hazard, "launched")


def allocation(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Whether the memory lies on device 0."""
    return _answer(_observed(probing).allocations, hazard, "allocated")


def _answer(seen: Devices, hazard: dict[str, Any], done: str) -> Answer:
    devices = seen.get((hazard["file"], hazard["line"]))
    if devices is None:
        return None, "not probed: none of the probe's calls gets there"
    if 0 in devices:
        return True, f"tensors on cuda:1, current device cuda:0: {done} on cuda:0"
    return False, f"{done} on the tensors' device"


class _Observed:
    """Devices of what each line of the library launched and allocated."""

    def __init__(self) -> None:
        self.launches: Devices = {}
        self.allocations: Devices = {}


class _Allocations(TorchFunctionMode):
    """Takes down on which GPU memory is asked for by name, and gives memory of the CPU instead."""

    def __init__(self, note: Callable[[int], None], current: Callable[[], int]) -> None:
        super().__init__()
        self._note, self._current = note, current

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "cuda":
            given = [*args[1:2], kwargs.get("device"), "cuda"]
            self._note_gpu(next(device for device in given if device is not None))
            return args[0]
        if self._note_gpu(kwargs.get("device")):
            kwargs["device"] = "cpu"
        elif name == "to" and self._note_gpu(args[1] if len(args) > 1 else None):
            args = (args[0], "cpu", *args[2:])
        return func(*args, **kwargs)

    def _note_gpu(self, device: Any) -> bool:
        """Whether this names a GPU, which is then noted."""
        if isinstance(device, bool) or not isinstance(device, (int, str, torch.device)):
            return False
        named = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if named.type != "cuda":
            return False
        self._note(self._current() if named.index is None else named.index)
        return True


def _observed(probing: Probing) -> _Observed:
    if "seen" not in probing.memo:
        probing.memo["seen"] = _observe(probing)
    seen: _Observed = probing.memo["seen"]
    return seen


def _observe(probing: Probing) -> _Observed:
    """Runs what the library offers."""
    seen = _Observed()

    def note(devices: Devices, device: int) -> None:
        place = _calling_line(probing.package)
        if place:
            devices.setdefault(place, set()).add(device)

    with two_devices(PAIRS[1]) as driver, watched_guards(driver, home=1):
        torch.cuda.is_available = lambda: False  # two_devices restores it; tensors are made on the CPU

        def observe(*_: object) -> None:
            note(seen.launches, driver.current)

        allocated = _Allocations(lambda device: note(seen.allocations, device), lambda: driver.current)
        observers.append(observe)
        try:
            for call in _calls(probing.adapter):
                driver.current = 0
                with suppress(Exception), allocated:  # what this generation does not offer launches nothing
                    call()
        finally:
            observers.remove(observe)
    return seen


def _calling_line(package: Path) -> tuple[str, int] | None:
    """File within the library and line of the innermost frame that belongs to it."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if package in path.parents or package in path.resolve().parents:
            inside = path if package in path.parents else path.resolve()
            return inside.relative_to(package).as_posix(), frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _calls(adapter: Adapter) -> Iterator[Callable[[], Any]]:
    """Small calls of all that an adapter offers."""
    generator = torch.Generator().manual_seed(1)

    def data(*shape: int) -> torch.Tensor:
        return torch.randint(-4, 5, shape, generator=generator).to(torch.bfloat16)

    def matmul(**options: Any) -> Callable[[], Any]:
        weight = adapter.weight(
            "bf16", data(2, 32, 32) if "routing" in options else data(32, 32), None, "strided", _same
        )
        return lambda: adapter.matmul(data(16, 32), weight, out_dtype=torch.bfloat16, **options)

    yield lambda: adapter.topk(data(4, 32).float(), 2)
    yield lambda: adapter.route(data(8, 2).float(), 2)
    yield lambda: adapter.swiglu(data(8, 32), 1.0, 1.0)
    yield lambda: adapter.upcast(*adapter.downcast(data(8, 32), "mxfp8_e4m3", 1), torch.bfloat16, 1)
    yield lambda: matmul()()
    yield lambda: matmul(routing=adapter.route(data(8, 2).float(), 2), gather=False)()
    yield lambda: matmul(routing=adapter.route(data(8, 2).float(), 2), scatter=True)()


def _same(tensor: torch.Tensor, name: str = "") -> torch.Tensor:
    return tensor
