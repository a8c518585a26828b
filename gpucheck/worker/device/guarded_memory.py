"""Watched memory: every tensor of a launch lies between guard bands in memory filled with a known byte.

A store past the end of a tensor breaks a guard; a load past the end, or from memory nobody wrote, reads the fill and
shows as a difference between two passes with different fills.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpucheck.verify.views import extent, once

GUARD = {"cuda": 64 << 10, "cpu": 4 << 10}  # bytes on each side of a tensor
ALIGNMENT = 256

_aten = torch.ops.aten
_EMPTY = {_aten.empty.memory_format, _aten.empty_strided.default, _aten.new_empty.default}
_EMPTY |= {_aten.new_empty_strided.default, _aten.empty_like.default}
_FILLED = {_aten.zeros.default, _aten.zeros_like.default, _aten.new_zeros.default, _aten.ones.default}
_FILLED |= {_aten.full.default, _aten.full_like.default, _aten.new_full.default, _aten.ones_like.default}


Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Size, strides and dtype of a tensor."""


@dataclass(frozen=True)
class _Slot:
    """One watched tensor: its whole memory, and where in it the tensor lies."""

    memory: Tensor  # uint8
    start: int
    end: int
    form: Form
    placed: bool  # holds a copy of given data; else what is not written is fill
    fill: int
    name: str = ""  # what it holds; "": not known

    @property
    def tensor(self) -> str:
        """Its dtype and shape, and what it holds where that is known, in words."""
        size, _, dtype = self.form
        held = f", {self.name}" if self.name else ""
        return f"{str(dtype).removeprefix('torch.')} tensor of shape {tuple(size)}{held}"

    @property
    def gaps(self) -> bool:
        """Whether there may be memory between its elements that belongs to none of them."""
        size, stride, _ = self.form
        return math.prod(n for n, s in zip(size, stride, strict=True) if s) != extent(size, stride)


class GuardedMemory:
    """Hands out guarded memory on one device.

    Each tensor owns its memory, so what the library keeps beyond a launch (scratch buffers, descriptors) stays valid.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.guard = GUARD[device.type]
        self.fill = 0xFF
        self._odd: Container[int] = ()
        self._slots: list[_Slot] = []
        self._made: list[Form] = []
        self._reserved: list[tuple[Form, Tensor]] = []

    def __len__(self) -> int:
        """How many tensors are watched."""
        return len(self._slots)

    def reset(self, fill: int, odd: Container[int] = ()) -> None:
        """Watches none of the tensors handed out so far any more.

        Args:
            fill: the byte that further memory is filled with.
            odd: numbers of the further tensors, in the order they are handed out, whose memory is filled with the
                complement of ``fill``.
        """
        self.fill, self._odd, self._slots = fill, odd, []
        self._made, self._reserved = [], []

    def reserve(self) -> None:
        """Fills memory now for tensors of the forms handed out by :meth:`empty` since the last reset.

        A launch that is repeated then gets memory that needs no filling, which on a busy stream would come too late.
        """
        forms, self._made = self._made, []
        self._reserved = [(form, self._slot(*form, placed=False)) for form in forms]

    def words(self, number: int) -> str:
        """What reading fill from the memory of one watched tensor means."""
        slot = self._slots[number]
        if not slot.placed:
            return f"within or next to the {slot.tensor}, before anything was written there"
        where = "outside of, or between the elements of," if slot.gaps else "outside of"
        return f"{where} the {slot.tensor}"

    def empty(self, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised (filled) memory for a tensor of these strides, between guards."""
        form = (size, stride, dtype)
        self._made.append(form)
        for number, (reserved, tensor) in enumerate(self._reserved):
            if reserved == form:
                del self._reserved[number]
                return tensor
        return self._slot(size, stride, dtype, placed=False)

    def _slot(
        self,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
        *,
        placed: bool,
        past: int = 0,
        name: str = "",
    ) -> Tensor:
        """Memory for a tensor that starts ``past`` bytes behind an aligned address."""
        if not all(size):
            return torch.empty_strided(size, stride, dtype=dtype, device=self.device)
        count = extent(size, stride) * dtype.itemsize
        fill = 0xFF - self.fill if len(self._slots) in self._odd else self.fill
        memory = torch.full((2 * self.guard + count + ALIGNMENT,), fill, dtype=torch.uint8, device=self.device)
        start = self.guard + (past - memory.data_ptr() - self.guard) % ALIGNMENT
        self._slots.append(_Slot(memory, start, start + count, (size, stride, dtype), placed, fill, name))
        held = memory[start : start + count].view(dtype)
        return held.as_strided(size, stride, held.storage_offset())

    def place(self, tensor: Tensor, name: str = "") -> Tensor:
        """A copy of ``tensor`` between guards on the device; gaps between its elements hold the fill.

        Strides are kept, and how far behind an aligned address it starts.

        Args:
            name: what it holds, for the words on memory that was read around it.
        """
        if not tensor.numel():
            return tensor.to(self.device)
        past = int(tensor.storage_offset()) * tensor.element_size()
        held = self._slot(tuple(tensor.shape), tensor.stride(), tensor.dtype, placed=True, past=past, name=name)
        once(held).copy_(once(tensor))
        return held

    def broken_guards(self) -> list[str]:
        """One line for each guard band that no longer holds the fill, and each tensor whose gaps do not."""
        bands = []
        for slot in self._slots:
            bands += [slot.memory[slot.start - self.guard : slot.start], slot.memory[slot.end : slot.end + self.guard]]
        if not bands:
            return []
        fills = torch.tensor([slot.fill for slot in self._slots for _ in range(2)], device=self.device)[:, None]
        wrong = (torch.cat(bands).view(len(bands), self.guard) != fills).any(1).nonzero().flatten().tolist()
        lines = [
            self._broken_band(self._slots[number // 2], bands[number], "after" if number % 2 else "before")
            for number in wrong
        ]
        return lines + [line for slot in self._slots if slot.gaps and (line := self._written_gaps(slot))]

    def _written_gaps(self, slot: _Slot) -> str:
        """What was written between the elements of a tensor; "" for nothing."""
        size, stride, dtype = slot.form
        unused = torch.ones(extent(size, stride), dtype=torch.bool, device=self.device)
        once(unused.as_strided(size, stride)).fill_(False)
        elements = slot.memory[slot.start : slot.end].view(len(unused), dtype.itemsize)
        count = int(((elements != slot.fill) & unused[:, None]).sum())
        return f"{count} bytes written between the elements of the {slot.tensor}" if count else ""

    def _broken_band(self, slot: _Slot, band: Tensor, side: str) -> str:
        places = (band != slot.fill).nonzero().flatten()
        distance = self.guard - int(places[-1]) if side == "before" else int(places[0]) + 1
        return f"{len(places)} bytes written {side} the {slot.tensor}, nearest {distance} off"


class WatchedAllocation(TorchDispatchMode):
    """While active, tensors that are newly made on its device, uninitialised or filled, lie in the guarded memory."""

    def __init__(self, memory: GuardedMemory) -> None:
        super().__init__()
        self.memory = memory

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asks torch not to import its compiler, which takes longer than most cases; nothing here is compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _EMPTY and result.device == self.memory.device and result.numel():
            return self.memory.empty(tuple(result.shape), result.stride(), result.dtype)
        if func in _FILLED and result.device == self.memory.device:
            return self.memory.place(result)
        return result
