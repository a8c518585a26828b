"""Order on the device: inputs that come late, launches that are held back, outputs that are read early or late.

Stream order makes all of it right. A kernel on a stream of another device, or on one that nobody made wait, reads what
was there before, or is read before it has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from gpucheck.verify.digest import integers
from gpucheck.verify.views import once

DELAY = 50_000_000  # clock cycles, about 25 ms on an H200: far longer than the host takes to launch


def delay(device: torch.device) -> None:
    """Keeps the current stream of a device busy for a while; returns at once."""
    with torch.cuda.device(device):  # leaves a current device without context as it is
        torch.cuda._sleep(DELAY)


def delay_launches() -> None:
    """Keeps the stream busy that a launch would go to now: the current one of the current device."""
    torch.cuda._sleep(DELAY)


def hold_back(inputs: Iterable[Tensor], device: torch.device) -> Callable[[], None]:
    """Replaces the content of inputs on a GPU by 0xFF bytes, NaN in every float format.

    Returns:
        A function that puts a delay and then the real content onto the device's current stream, and returns at once.
    """
    held = [(view, view.clone()) for view in map(once, inputs)]
    for tensor, _ in held:
        poison(tensor)

    def produce() -> None:
        delay(device)
        for tensor, real in held:
            tensor.copy_(real)

    return produce


def reader(outputs: Mapping[str, Tensor]) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """A consumer of outputs of this form, with memory that is ready and poisoned.

    Returns:
        A function that copies outputs on the current stream of their device, without any wait on the host.
    """
    ready = {name: torch.empty_like(value) for name, value in outputs.items()}
    for tensor in ready.values():
        poison(tensor)

    def read(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, value in outputs.items():
            if value.shape != ready[name].shape or value.dtype != ready[name].dtype:
                raise ValueError(
                    f"{name} is {value.dtype} {tuple(value.shape)}, "
                    f"was {ready[name].dtype} {tuple(ready[name].shape)} a launch before"
                )
            ready[name].copy_(value)
        return ready

    return read


def poison(tensor: Tensor) -> None:
    """Fills a tensor with 0xFF bytes."""
    integers(tensor).fill_(-1)


@contextmanager
def side_stream(side: torch.cuda.Stream) -> Iterator[None]:
    """Another stream is the current one of its device, behind all that the usual one holds."""
    usual = torch.cuda.current_stream(side.device)
    side.wait_stream(usual)
    with torch.cuda.stream(side):
        yield
    usual.wait_stream(side)
