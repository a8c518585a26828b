"""Whether an output is wrong just where an offset no longer fits 32 bits: 2^31 elements or bytes into a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpucheck.model.record import LargeTensor, Mismatch
from gpucheck.verify.expected import Axes, Expected, plain_axes
from gpucheck.verify.judge import closest
from gpucheck.verify.regions import listed, plural

LIMIT = 2**31
WIDER = "; make the index 64 bits wide before it is multiplied"
ENOUGH = 0.25  # share of what lies beyond the limit that must be wrong; values there may be right by chance
FEWEST = 3  # elements that agree modulo a power of two by more than chance
MOST_INDICES = 2**24  # elements of a table whose values are looked at


@dataclass(frozen=True)
class _Reached:
    """How far into a large tensor each index along one axis of an output reaches."""

    offsets: Tensor  # int64, in elements; the furthest where it reaches for several places
    table: str  # name of the input whose values say so; "" where the index itself does


def with_hints(
    mismatches: Sequence[Mismatch],
    outputs: Mapping[str, Tensor],
    references: Mapping[str, Expected],
    axes: Mapping[str, Axes],
    inputs: Mapping[str, Tensor],
    large: Sequence[LargeTensor],
) -> list[Mismatch]:
    """The mismatches, those that an offset of 32 bits explains with a hint at it; arguments as for :func:`hint`."""
    found = []
    for mismatch in mismatches:
        output = outputs.get(mismatch.output)
        whole = output is not None and not output.dtype.is_floating_point
        if output is not None and (whole or large or output.nbytes > LIMIT):
            estimate, wrong, _ = closest(output, references[mismatch.output])
            names = axes.get(mismatch.output) or plain_axes(output.ndim)
            words = _overflowed(output, estimate.value, wrong) if whole else ""
            words = words or hint(wrong, output.element_size(), names, inputs, large)
            mismatch = replace(mismatch, wraps=words)
        found.append(mismatch)
    return found


def _overflowed(got: Tensor, expected: Tensor, wrong: Tensor) -> str:
    """That the wrong integers are the right ones but for what fewer bits cannot hold; no right one needs more."""
    values, right, kept = got[wrong].long(), expected[wrong].long(), expected[~wrong].long()
    for bits in (8, 16, 32):
        span = 1 << bits
        if bool(((kept < -span // 2) | (kept >= span)).any()):
            continue
        held = ((values >= -span // 2) & (values < span // 2)) | ((values >= 0) & (values < span))
        if len(values) >= FEWEST and bool((held & ((values - right) % span == 0)).all()):
            return f"every wrong element is the right one modulo 2^{bits}: a number of {bits} bits has overflowed"
    return ""


def hint(wrong: Tensor, itemsize: int, axes: Axes, inputs: Mapping[str, Tensor], large: Sequence[LargeTensor]) -> str:
    """In words, that all wrong elements lie behind such an offset and none before it; "" where that is not so.

    Args:
        wrong: which elements of an output are wrong.
        itemsize: bytes of one of them.
        inputs: of the case; those of integers may be tables of indices into a large tensor.
        large: arguments of the launches that offsets of 32 bits do not reach all of.
    """
    return _in_output(wrong, itemsize) or next(
        (
            words
            for tensor in large
            for axis in range(wrong.ndim)
            for words in _in_argument(wrong, axis, axes, inputs, tensor)
        ),
        "",
    )


def _in_output(wrong: Tensor, itemsize: int) -> str:
    if wrong.numel() * itemsize <= LIMIT or not bool(wrong.any()):
        return ""
    first = int(wrong.flatten().to(torch.uint8).argmax())
    for unit, limit in _limits(itemsize):
        beyond = wrong.numel() - limit
        if limit <= first and int(wrong.sum()) >= ENOUGH * beyond:
            return (
                f"offset arithmetic wraps at 2^31: every wrong element lies behind {unit}, none before; the first has "
                f"the offset {first:,}" + (f" in elements of {itemsize} bytes" if itemsize > 1 else "") + WIDER
            )
    return ""


def _in_argument(
    wrong: Tensor, axis: int, axes: Axes, inputs: Mapping[str, Tensor], tensor: LargeTensor
) -> Iterator[str]:
    others = [other for other in range(wrong.ndim) if other != axis]
    touched = wrong.any(dim=others) if others else wrong
    for size, stride in zip(tensor.shape, tensor.stride, strict=True):
        for reached in _reached(touched.numel(), axis, axes, inputs, size, abs(stride)):
            for unit, limit in _limits(tensor.itemsize):
                beyond = reached.offsets >= limit
                explained = not bool((touched & ~beyond).any()) and int(touched.sum()) >= ENOUGH * int(beyond.sum())
                if explained and bool(touched.any()) and not bool(beyond.all()):
                    yield _overflow_text(touched, beyond, reached, axes.names[axis], stride, tensor, unit)


def _reached(
    count: int, axis: int, axes: Axes, inputs: Mapping[str, Tensor], size: int, stride: int
) -> Iterator[_Reached]:
    """Ways in which the indices along an axis of an output may reach along one axis of a large tensor."""
    if count == size:
        yield _Reached(torch.arange(count) * stride, "")
    for name, table in inputs.items():
        if table.is_floating_point() or table.is_complex() or not 1 <= table.numel() <= MOST_INDICES or not table.ndim:
            continue
        values = table.reshape(table.shape[0], -1).long()
        if bool((values >= size).any()):
            continue  # no indices into this tensor
        furthest = values.amax(1) * stride
        if len(furthest) == count:
            yield _Reached(furthest, name)
        for membership in axes.owners.values() if axis == 0 else ():
            owner = membership.amax(1)
            if len(owner) == count and int(owner.max()) < len(furthest):
                yield _Reached(torch.where(owner >= 0, furthest[owner.clamp_min(0)], 0), name)


def _limits(itemsize: int) -> list[tuple[str, int]]:
    """What an offset of 32 bits reaches, in words and in elements; the further one first."""
    found = [("2^31 elements", LIMIT)]
    return [*found, ("2^31 bytes", math.ceil(LIMIT / itemsize))] if itemsize > 1 else found


def _overflow_text(
    touched: Tensor, beyond: Tensor, reached: _Reached, word: str, stride: int, tensor: LargeTensor, unit: str
) -> str:
    numbers = touched.nonzero().flatten().tolist()
    what = f"{word if len(numbers) == 1 else plural(word)} {listed(numbers)}"
    all_of = "just those" if bool((touched == beyond).all()) else "all among those"
    by = f"{reached.table} times the stride {stride:,}" if reached.table else f"index times the stride {stride:,}"
    return (
        f"offset arithmetic wraps at 2^31: wrong are {what}, {all_of} whose {by} of {tensor.words} passes {unit}; the "
        f"first has the offset {int(reached.offsets[numbers[0]]):,}{WIDER}"
    )
