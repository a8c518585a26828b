"""Views that are not dense: how far they reach, how to write to them, how to move them with the strides that they have.

A view is part of what a kernel is given: one that takes its rows for neighbours is right on a dense copy alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ALIGNMENT = 256  # elements: a view starts as far behind such a boundary on a device as it does in its own memory


def extent(size: Sequence[int], stride: Sequence[int]) -> int:
    """How many elements lie between the first and the last one of a view that is not empty, both included."""
    return 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))


def fills_its_memory(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements of a view follow each other without gaps, in whatever order, each in a place of its own."""
    expected = 1
    for step, count in sorted(zip(stride, size, strict=True)):
        if count != 1:
            if step != expected:
                return False
            expected *= count
    return True


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill its memory without gaps and each has a place of its own."""
    return fills_its_memory(tensor.shape, tensor.stride())


def once(tensor: Tensor) -> Tensor:
    """A view of the first place along each axis of stride 0: torch writes to no view whose elements share memory."""
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]


PIECE = 1 << 18  # elements: their tensors stay in a cache; smaller ones make threads wait for the interpreter's lock
PIECE_OF_GPU = 1 << 26  # elements: few launches, and 512 MiB of float64 each


def pieces_of(tensor: Tensor) -> Iterator[tuple[int | slice, ...]]:
    """As :func:`pieces`, of a size that suits the device of a tensor."""
    return pieces(tensor.shape, PIECE if tensor.device.type == "cpu" else PIECE_OF_GPU)


def pieces(size: Sequence[int], most: int = PIECE) -> Iterator[tuple[int | slice, ...]]:
    """Indices of the parts of a tensor, which need no copies: whatever is computed one by one stays in a cache."""
    below = math.prod(size[1:])
    if not size or not size[0] * below:
        yield from [] if 0 in size else [()]
    elif below <= most:
        step = most // below
        yield from ((slice(first, first + step),) for first in range(0, size[0], step))
    else:
        yield from ((row, *rest) for row in range(size[0]) for rest in pieces(size[1:], most))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on a device, strides kept: ``Tensor.to`` makes contiguous whatever overlaps itself or has gaps."""
    if tensor.device == device or not tensor.numel():
        return tensor.to(device)
    offset = tensor.storage_offset()
    lead = offset % ALIGNMENT
    flat = tensor.as_strided((lead + extent(tensor.shape, tensor.stride()),), (1,), offset - lead)
    return flat.to(device).as_strided(tensor.shape, tensor.stride(), lead)
