"""Copies of many tensors on their devices, made and compared in few launches: small ones share one memory.

A call of the library is given dozens of small tensors; a launch or two for each of them took longer than the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from gpucheck.verify.digest import integers
from gpucheck.verify.views import is_dense

SMALL = 1 << 20  # bytes; a larger tensor is copied and compared by itself
NONE: Mapping[int, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Change:
    """What of one tensor no longer is as it was copied."""

    number: int  # of the tensor, in the order they were copied
    elements: int  # that differ
    first: int  # of these, counted row by row
    shape: tuple[int, ...]


class _Part:
    """One tensor as integers, and its elements one after the other: as they lie in memory, else row by row."""

    def __init__(self, number: int, tensor: Tensor) -> None:
        self.number, self.dtype = number, tensor.dtype
        self.integers = integers(tensor)
        self.dense = is_dense(self.integers)
        self.restorable = self.dense and not tensor.is_conj()  # whose integers lie in memory of their own
        self.bytes = self.integers.numel() * self.integers.element_size()

    def flat(self) -> Tensor:
        """(elements,) integers; the very memory of a dense tensor."""
        whole = self.integers
        return whole.as_strided((whole.numel(),), (1,)) if self.dense else whole.contiguous().flatten()

    def shaped(self, flat: Tensor) -> Tensor:
        """What there is for each of the elements one after the other, in the tensor's shape."""
        return flat.as_strided(self.integers.shape, self.integers.stride()) if self.dense else flat.view(self.shape)

    def typed(self, flat: Tensor) -> Tensor:
        """A tensor of the shape and dtype of this one, of elements one after the other."""
        whole = self.shaped(flat.view(self.integers.dtype))
        if self.dtype.is_complex:
            return torch.view_as_complex(whole.view(self.dtype.to_real()))
        return whole.view(self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.integers.shape)


class Comparison:
    """Where tensors differ from their copies; the answer may still be on its way from the device."""

    def __init__(self, parts: Sequence[_Part], wrong: Tensor) -> None:
        self._parts, self._wrong = parts, wrong  # (elements,) of one, (bytes,) of several
        self.any = wrong.any()

    def changes(self) -> list[Change]:
        """The tensors that differ. Waits for the device."""
        found = []
        for part, piece in _pieces(self._parts, self._wrong):
            each = part.shaped(piece.view(part.integers.numel(), -1).any(1)).flatten()
            if count := int(each.sum()):
                found.append(Change(part.number, count, int(each.to(torch.uint8).argmax()), part.shape))
        return found


class _Group:
    """Tensors of one device that are copied together, as bytes where there are several."""

    def __init__(self, parts: Sequence[_Part], original: Tensor | None = None) -> None:
        self.parts = parts
        now = self._now()
        if len(parts) > 1 or not parts[0].dense:
            self.before = now
        elif original is not None and _same(original, parts[0]):
            self.before = _Part(0, original).flat()
        else:
            self.before = now.clone()

    def _now(self) -> Tensor:
        flat = [part.flat() for part in self.parts]
        return flat[0] if len(flat) == 1 else torch.cat([each.view(torch.uint8) for each in flat])

    def compare(self) -> Comparison | None:
        """None where it is known at once that nothing differs."""
        now = self._now()
        if now.device.type == "cpu" and torch.equal(self.before, now):
            return None
        return Comparison(self.parts, self.before != now)

    def pieces(self) -> Iterator[tuple[_Part, Tensor]]:
        """Each tensor with its copy."""
        return _pieces(self.parts, self.before)


def _same(original: Tensor, part: _Part) -> bool:
    """Whether another tensor in host memory holds the same; a GPU would have to be waited for to know."""
    other = _Part(0, original)
    form = (original.dtype, other.integers.shape, other.integers.stride(), other.integers.device.type)
    if form != (part.dtype, part.integers.shape, part.integers.stride(), "cpu"):
        return False
    return torch.equal(other.flat(), part.flat())


def _pieces(parts: Sequence[_Part], together: Tensor) -> Iterator[tuple[_Part, Tensor]]:
    """Each tensor with what belongs to it: the whole, or its bytes where it is one of several."""
    sizes = [part.bytes for part in parts]
    return zip(parts, together.split(sizes) if len(parts) > 1 else (together,), strict=True)


class Copies:
    """Copies of tensors, none of which is empty."""

    def __init__(self, tensors: Sequence[Tensor], originals: Mapping[int, Tensor] = NONE) -> None:
        """Args:
        originals: by number of a tensor another one that nothing writes to; where that is in host memory and the same,
            it is the copy.
        """
        parts = [_Part(number, tensor.detach()) for number, tensor in enumerate(tensors)]
        groups: dict[object, list[_Part]] = {}
        for part in parts:
            key = part.integers.device if part.bytes <= SMALL else part.number
            groups.setdefault(key, []).append(part)
        self._groups = [_Group(each, originals.get(each[0].number)) for each in groups.values()]

    def compare(self) -> list[Comparison]:
        """Where the tensors differ from their copies now; nothing is left out that may."""
        found = [group.compare() for group in self._groups]
        return [each for each in found if each is not None]

    def restore(self) -> None:
        """Puts the copies back, but for tensors with gaps, whose elements may share memory."""
        for group in self._groups:
            pairs = [(part.flat(), piece) for part, piece in group.pieces() if part.restorable]
            if pairs:
                targets = [target.view(piece.dtype) for target, piece in pairs]
                torch._foreach_copy_(targets, [piece for _, piece in pairs])

    def copy(self, number: int) -> Tensor:
        """One tensor as it was."""
        for group in self._groups:
            for part, piece in group.pieces():
                if part.number == number:
                    return part.typed(piece.clone())
        raise IndexError(number)


def difference(before: Tensor, now: Tensor) -> Comparison:
    """Where two tensors of one shape and dtype differ."""
    part = _Part(0, now.contiguous())
    return Comparison([part], integers(before).flatten() != part.flat())
