"""Sees every Triton launch of this process: where it ran, where its arguments live, what was compiled for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from gpucheck.model.record import Launch


class Observer:
    """Collects launches and compile time between :meth:`start` and :meth:`take`."""

    def __init__(self) -> None:
        self._launches: dict[tuple[Any, ...], Launch] = {}
        self._ids: dict[tuple[Any, ...], int] = {}
        self.compile_seconds = 0.0

    def start(self) -> None:
        """Forgets what was seen."""
        self._launches, self.compile_seconds = {}, 0.0

    def take(self) -> list[Launch]:
        """The distinct launches seen since :meth:`start`, in the order of their first occurrence."""
        return list(self._launches.values())

    def add(self, launch: Launch) -> None:
        """Counts one launch."""
        key = (launch.kernel, launch.hash, launch.device, tuple(launch.argument_devices), launch.stream, *launch.grid)
        seen = self._launches.get(key)
        self._launches[key] = launch if seen is None else replace(seen, count=seen.count + 1)

    def install_interpreter(self) -> None:
        """Observes launches that Triton's interpreter runs."""
        from gpucheck.interpreter.launch import observers

        def observe(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            devices = _devices((*args, *kwargs.values()))
            self.add(Launch(name, 1, None, devices, None, "", "interpreter", 0, 0, []))

        observers.append(observe)

    def install_compiled(self) -> None:
        """Observes launches and compilations of this process; works from Triton 3.4 on."""
        import triton
        from triton.runtime.jit import JITFunction

        launch, build = JITFunction.run, triton.compiler.compile

        def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            compiled = launch(function, *args, grid=grid, warmup=warmup, **kwargs)
            if not warmup and compiled is not None:
                self.add(_compiled_launch(function, compiled, args, kwargs, grid))
            return compiled

        def compile_timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return build(*args, **kwargs)
            finally:
                self.compile_seconds += time.perf_counter() - begin

        JITFunction.run = run
        triton.compiler.compile = compile_timed
        triton.compiler.compiler.compile = compile_timed


def _compiled_launch(function: Any, compiled: Any, args: Any, kwargs: Any, grid: Any) -> Launch:
    current = torch.cuda.current_device()
    metadata = compiled.metadata
    target = metadata.target
    return Launch(
        kernel=function.fn.__name__,
        count=1,
        device=current,
        argument_devices=_devices((*args, *kwargs.values())),
        stream=torch.cuda.current_stream(current).cuda_stream,
        hash=str(compiled.hash)[:16],
        arch=f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch),
        shared=int(metadata.shared),
        warps=int(metadata.num_warps),
        grid=[int(n) for n in grid] if isinstance(grid, (tuple, list)) else [],
    )


def _devices(arguments: tuple[Any, ...]) -> list[str]:
    """The distinct devices of tensor arguments, those inside tensor descriptors included."""
    found = {str(device) for device in _each_device(arguments)}
    return sorted(found)


def _each_device(arguments: Any) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument.device
        elif isinstance(argument, (tuple, list)):
            yield from _each_device(argument)
        elif isinstance(base := getattr(argument, "base", None), torch.Tensor):
            yield base.device
        elif isinstance(data := getattr(argument, "data", None), torch.Tensor):
            yield data.device


@contextmanager
def kernel_clock(device: torch.device) -> Iterator[list[float]]:
    """Appends the seconds the device took for what is launched inside; wall time on the CPU."""
    seconds: list[float] = []
    if device.type != "cuda":
        begin = time.perf_counter()
        yield seconds
        seconds.append(time.perf_counter() - begin)
        return
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record(torch.cuda.current_stream(device))
    yield seconds
    last.record(torch.cuda.current_stream(device))
    last.synchronize()
    seconds.append(first.elapsed_time(last) / 1000)
