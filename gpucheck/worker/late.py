"""Late inputs: what a launch reads is produced on the device right before it, behind a delay, without any wait.

Stream order makes that right. A kernel on a stream of another device does not wait and reads what was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

DELAY = 50_000_000  # clock cycles, about 25 ms on an H200: far longer than the host takes to launch
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def hold_back(inputs: Iterable[Tensor], device: torch.device) -> Callable[[], None]:
    """Replaces the content of inputs on a GPU by 0xFF bytes, NaN in every float format.

    Returns:
        A function that puts a delay and then the real content onto the device's current stream, and returns at once.
    """
    held = [(tensor, tensor.clone()) for tensor in inputs]
    for tensor, _ in held:
        tensor.view(_INTEGERS[tensor.element_size()]).fill_(-1)

    def produce() -> None:
        with torch.cuda.device(device):  # leaves a current device without context as it is
            torch.cuda._sleep(DELAY)
        for tensor, real in held:
            tensor.copy_(real)

    return produce
