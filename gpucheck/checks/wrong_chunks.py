"""What the wrong elements of a chunk that one rank gave another are instead: dropped, swapped, stale or changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from gpucheck.checks import rank_data
from gpucheck.model.case import Case
from gpucheck.model.record import Transfer
from gpucheck.model.vocabulary import TransferFault

RUN = 4  # elements in a row that are found elsewhere; fewer may be equal by chance
MOST_PIECES = 16
CHANCE = 10  # bits that wrong elements must tell beyond a choice among explanations: one in 1,000 fits by chance
POISON = 0xFF  # byte in the receiver's buffer before a round
Elsewhere = Callable[[int], Iterable[tuple[str, Tensor]]]
"""Further data that may have come in place of what a sender gave, each in words."""


def wrong_chunks(
    case: Case,
    name: str,
    output: Tensor,
    wrong: Tensor,
    parts: Mapping[int, Tensor],
    elsewhere: Elsewhere,
    before: Mapping[int, Tensor] | None = None,
) -> list[Transfer]:
    """The wrong transfers into one output, which holds a chunk of each sender, one after the other.

    Args:
        output: one dimension, as are ``wrong``, its wrong elements, and the chunks.
        parts: what each sender gave to this rank.
        before: the same of the round before; None: there was none.
    """
    found, start = [], 0
    for sender, part in parts.items():
        places = wrong[start : start + len(part)].nonzero().flatten()
        if len(places):
            got = output[start : start + len(part)][places]
            old = before[sender] if before else None
            fault, detail = _instead(case, part, places, got, elsewhere(sender), old)
            found.append(transfer(case, sender, fault, name, output, places + start, len(part), detail))
        start += len(part)
    return found


def transfer(
    case: Case, sender: int, fault: TransferFault, name: str, output: Tensor, places: Tensor, total: int, detail: str
) -> Transfer:
    size = output.element_size()
    first, last = int(places[0]) * size, (int(places[-1]) + 1) * size - 1
    return Transfer(sender, case.rank, fault, name, first, last, len(places), total, detail)


def telling(case: Case, elements: int, explanations: int) -> bool:
    """Whether so many wrong elements cannot well fit one of so many explanations by chance."""
    values = 2 * rank_data.LARGEST[case["dtype"]] / max(1, case.ranks)
    return elements * math.log2(values) >= math.log2(explanations) + CHANCE


def _instead(
    case: Case, right: Tensor, places: Tensor, got: Tensor, elsewhere: Iterable[tuple[str, Tensor]], old: Tensor | None
) -> tuple[TransferFault, str]:
    """The fault of one chunk, by what its wrong elements are."""
    held = got.view(torch.uint8)
    if bool((held == POISON).all()):
        return TransferFault.EARLY, "the receiver's buffer as it was before: nothing had come when it was read"
    if not bool(held.any()):
        return TransferFault.DROPPED, "zeros"
    if not telling(case, len(places), 2 * case.ranks):
        return TransferFault.CORRUPT, "too few elements to say what they are instead"
    if old is not None and bool((old[places] == got).all()):
        return TransferFault.STALE, "what the sender gave in the round before"
    for other, chunk in elsewhere:
        if len(chunk) > int(places[-1]) and bool((chunk[places] == got).all()):
            return TransferFault.SWAPPED, other
    if shifts := _pieces(right, places, got):
        size = got.element_size()
        words = (f"{abs(each) * size} bytes {'further on' if each > 0 else 'before'}" for each in shifts)
        return TransferFault.SWAPPED, f"what belongs {' and '.join(dict.fromkeys(words))}"
    return TransferFault.CORRUPT, "no data that a rank gave"


def _pieces(right: Tensor, places: Tensor, got: Tensor) -> list[int] | None:
    """How far off the wrong elements belong in the right chunk, piece by piece; None where one belongs nowhere in it.

    A piece has at least RUN elements, so that equal values by chance do not count.
    """
    shifts: list[int] = []
    start = 0
    while start < len(places):
        if len(places) - start < RUN or len(shifts) == MOST_PIECES:
            return None
        longest, shift = 0, 0
        for place in (right == got[start]).nonzero().flatten().tolist():
            there = places[start:] + (place - int(places[start]))
            inside = there[: int(((there >= 0) & (there < len(right))).sum())]
            equal = right[inside] == got[start : start + len(inside)]
            run = int(equal.int().cumprod(0).sum())
            if run > longest:
                longest, shift = run, place - int(places[start])
        if longest < RUN:
            return None
        shifts.append(shift)
        start += longest
    return shifts
