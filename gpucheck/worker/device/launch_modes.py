"""What the Triton launches of a process do: run, do nothing, leave other values behind, or begin late.

Whether an answer comes from the kernels shows when they do something else: an output that stays right without them, or
with other values in their place, was made by somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpucheck.triton_hooks.launch_hooks import kernel_kinds
from gpucheck.worker.device import stream_stress
from gpucheck.worker.protocol import CHANGED, DELAYED, IDLE, RUN

FACTORS = (-0.75, 1.5, 0.5, -1.25)  # of what a kernel wrote, by turns: no sum, maximum or norm of it stays the same

Launch = Callable[..., Any]


@dataclass(frozen=True)
class Launches:
    """The launches of this process. Nothing else leads to their mode, so code under test does not find it by a name."""

    choose: Callable[[str], None]  # what launches do from now on, one of the modes of ``protocol``
    count: Callable[[], int]  # how many there were so far, replays of CUDA graphs included


def install(first: str = RUN) -> Launches:
    """Goes around every launch of this process, before any code under test is loaded.

    Args:
        first: what launches do until somebody chooses otherwise.
    """
    mode, count = [first], [0]
    for kind in kernel_kinds():
        _go_around(kind, mode, count)
    if hasattr(torch.cuda.CUDAGraph, "replay"):
        _go_around_graphs(mode, count)
    return Launches(partial(mode.__setitem__, 0), partial(count.__getitem__, 0))


def _go_around(kind: Any, mode: list[str], count: list[int]) -> None:
    inner, otherwise = vars(kind)["run"], {IDLE: _idle, CHANGED: _changing(), DELAYED: _delaying()}
    bind, runs = partial, RUN

    def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        launch = inner.__get__(kernel, kind)
        if kwargs.get("warmup"):
            return launch(*args, **kwargs)
        count[0] += 1
        return launch(*args, **kwargs) if mode[0] == runs else otherwise[mode[0]](launch, *args, **kwargs)

    def ignore(kernel: Any, value: Any) -> None:
        """Older Triton sets ``run`` on each interpreted function; this one stays."""

    kind.run = property(lambda kernel: bind(run, kernel), ignore) if isinstance(inner, property) else run
    kind.__getitem__ = lambda kernel, grid: bind(run, kernel, grid=grid, warmup=False)


def _go_around_graphs(mode: list[str], count: list[int]) -> None:
    """A graph that is replayed launches the kernels in it, which nobody else would see."""
    inner, delay = torch.cuda.CUDAGraph.replay, stream_stress.delay_launches

    def replay(graph: Any) -> None:
        count[0] += 1
        if mode[0] == DELAYED:
            delay()
        if mode[0] != IDLE:
            inner(graph)

    torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign,assignment]


def _idle(launch: Launch, *args: Any, **kwargs: Any) -> None:
    """Nothing is launched."""


def _changing() -> Launch:
    """What launches, and puts other values of the same kind where the kernel wrote; all it uses is bound here."""
    where, clone, copy, make, count = torch.where, Tensor.clone, Tensor.copy_, torch.tensor, torch.arange

    def tensors(arguments: Any) -> Iterator[Tensor]:
        for argument in arguments:
            if isinstance(argument, Tensor):
                yield argument
            elif isinstance(argument, (tuple, list)):
                yield from tensors(argument)
            elif isinstance(base := getattr(argument, "base", None), Tensor):  # of a tensor descriptor
                yield base

    def others(tensor: Tensor, old: Tensor) -> Tensor:
        """The content before, where a multiple of what was written might be no legal value."""
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            return old
        turns = count(tensor.numel(), device=tensor.device).view(tensor.shape) % len(FACTORS)
        return tensor * make(FACTORS, dtype=tensor.dtype, device=tensor.device)[turns]

    def changed(launch: Launch, *args: Any, **kwargs: Any) -> Any:
        given = list({id(tensor): tensor for tensor in tensors((*args, *kwargs.values()))}.values())
        before = [clone(tensor) for tensor in given]
        launched = launch(*args, **kwargs)
        for tensor, old in zip(given, before, strict=True):
            written = (tensor != old) & (tensor == tensor)
            copy(tensor, where(written, others(tensor, old), tensor))
        return launched

    return changed


def _delaying() -> Launch:
    """What launches behind a delay on the stream that the launch goes to: whoever does not wait for it comes first."""
    delay = stream_stress.delay_launches

    def delayed(launch: Launch, *args: Any, **kwargs: Any) -> Any:
        delay()
        return launch(*args, **kwargs)

    return delayed
