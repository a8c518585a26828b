"""Runs small cases with tensors that stand for ones on device 1 while device 0 is current, and watches the launches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gpucheck.audit.probes.base import Answer, Probing
from gpucheck.audit.probes.devices import PAIRS, two_devices
from gpucheck.interpreter.driver import watched_guards
from gpucheck.interpreter.launch import observers
from gpucheck.library.adapters.base import Adapter


def guard(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Whether the launch happened on device 0."""
    if "launches" not in probing.memo:
        probing.memo["launches"] = _observe(probing)
    devices = probing.memo["launches"].get((hazard["file"], hazard["line"]))
    if devices is None:
        return None, "not probed: none of the probe's calls launches it"
    if 0 in devices:
        return True, "tensors on cuda:1, current device cuda:0: launched on cuda:0"
    return False, "launched on the tensors' device"


def _observe(probing: Probing) -> dict[tuple[str, int], set[int]]:
    """Current devices of the launches that each line of the library made."""
    seen: dict[tuple[str, int], set[int]] = {}
    with two_devices(PAIRS[1]) as driver, watched_guards(driver, home=1):
        torch.cuda.is_available = lambda: False  # two_devices restores it; tensors are made on the CPU

        def observe(*_: object) -> None:
            place = _calling_line(probing.package)
            if place:
                seen.setdefault(place, set()).add(driver.current)

        observers.append(observe)
        try:
            for call in _calls(probing.adapter):
                driver.current = 0
                with suppress(Exception):  # what this generation does not offer launches nothing
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


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
