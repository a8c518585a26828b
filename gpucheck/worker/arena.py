"""Watched memory: every tensor of a launch lies between guard bands in memory filled with a known byte.

A store past the end of a tensor breaks a guard; a load past the end, or from memory nobody wrote, reads the fill and
shows as a difference between two passes with different fills.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GUARD = 4096  # bytes on each side of a tensor
ALIGNMENT = 256
CHUNK = {"cuda": 256 << 20, "cpu": 4 << 20}

_aten = torch.ops.aten
_EMPTY = {_aten.empty.memory_format, _aten.empty_strided.default, _aten.new_empty.default}
_EMPTY |= {_aten.new_empty_strided.default, _aten.empty_like.default}


class Arena:
    """Chunks of device memory handed out between guards; reused for every case of a process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.fill = 0xFF
        self._chunks: list[Tensor] = []
        self._chunk = 0
        self._offset = 0
        self._slots: list[tuple[int, int, int]] = []  # chunk, first byte, end

    def reset(self, fill: int) -> None:
        """Forgets all tensors and fills what they used with ``fill``; chunks beyond the first few are given back."""
        used = self._chunk + 1
        self.fill, self._chunk, self._offset, self._slots = fill, 0, 0, []
        del self._chunks[max(used, 4) :]
        for chunk in self._chunks:
            chunk.fill_(fill)

    def empty(self, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised (filled) memory for a tensor of these strides, between guards."""
        extent = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else 0
        count = extent * dtype.itemsize
        start = self._take(count)
        if start is None:
            return torch.empty_strided(size, stride, dtype=dtype, device=self.device)
        storage = self._chunks[self._chunk][start : start + count].view(dtype)
        return storage.as_strided(size, stride, storage.storage_offset())

    def place(self, tensor: Tensor) -> Tensor:
        """A copy of ``tensor`` between guards on the arena's device, strides kept."""
        if not tensor.numel():
            return tensor.to(self.device)
        dense = _dense_strides(tensor)
        held = self.empty(tuple(tensor.shape), dense, tensor.dtype)
        held.copy_(tensor)
        return held

    def broken_guards(self) -> list[str]:
        """One line for each guard band that no longer holds the fill."""
        bands = []
        for chunk, start, end in self._slots:
            data = self._chunks[chunk]
            bands += [data[start - GUARD : start], data[end : end + GUARD]]
        if not bands:
            return []
        wrong = (torch.cat(bands).view(len(bands), GUARD) != self.fill).any(1).tolist()
        lines = []
        for number, (_, start, end) in enumerate(self._slots):
            for side, bad in (("before", wrong[2 * number]), ("after", wrong[2 * number + 1])):
                if bad:
                    band = bands[2 * number + (side == "after")]
                    places = (band != self.fill).nonzero().flatten()
                    distance = GUARD - int(places[-1]) if side == "before" else int(places[0]) + 1
                    lines.append(
                        f"{len(places)} bytes written {side} a tensor of {end - start} bytes, nearest {distance} off"
                    )
        return lines

    def _take(self, count: int) -> int | None:
        if not count:
            return None
        needed = 2 * GUARD + count + 2 * ALIGNMENT
        while self._chunk < len(self._chunks) and self._offset + needed > self._chunks[self._chunk].numel():
            self._chunk, self._offset = self._chunk + 1, 0
        if self._chunk == len(self._chunks):
            size = max(CHUNK[self.device.type], needed)
            self._chunks.append(torch.full((size,), self.fill, dtype=torch.uint8, device=self.device))
            self._offset = 0
        chunk = self._chunks[self._chunk]
        first = chunk.data_ptr() + self._offset + GUARD
        start = self._offset + GUARD + (-first % ALIGNMENT)
        self._offset = start + count + GUARD
        self._slots.append((self._chunk, start, start + count))
        return start


class WatchedAllocation(TorchDispatchMode):
    """While active, uninitialised tensors on the arena's device come from the arena."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena = arena

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _EMPTY and result.device == self.arena.device and result.numel():
            return self.arena.empty(tuple(result.shape), result.stride(), result.dtype)
        return result


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides of ``tensor``; contiguous ones where it overlaps itself or leaves gaps."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1:
            if stride != expected:
                return tuple(torch.empty(tensor.shape, device="meta").stride())
            expected *= size
    return tensor.stride()
