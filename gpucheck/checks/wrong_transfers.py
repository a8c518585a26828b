"""What wrong bytes of a collective operation are instead: whose contribution is missing, stale, swapped or dropped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gpucheck.checks import collectives, rank_data
from gpucheck.model.case import Case
from gpucheck.model.record import Transfer
from gpucheck.model.vocabulary import TransferFault
from gpucheck.verify.expected import Expected

RUN = 4  # elements in a row that are found elsewhere; fewer may be equal by chance
MOST_PIECES = 16
CHANCE = (
    10  # bits that wrong elements tell beyond what it takes to choose among explanations: one in 1,000 is by chance
)
MOST_SUBSETS = 8  # members of which every selection is tried
POISON = 0xFF  # byte in the receiver's buffer before a round


def transfers(case: Case, outputs: dict[str, Tensor], expected: dict[str, Expected]) -> list[Transfer]:
    """The wrong transfers behind the wrong elements of all rounds."""
    if case["operation"] == "barrier":
        return []
    found = []
    for round in range(collectives.rounds(case)):
        name = f"out{round}"
        output, right = outputs.get(name), expected[name].estimate.value
        if output is None or output.shape != right.shape or output.dtype != expected[name].dtype:
            continue
        wrong = (output.double() != right).flatten()
        if bool(wrong.any()):
            reads = _reduced if case["operation"] in collectives.REDUCING else _moved
            found += reads(case, round, name, output.flatten(), wrong)
    return found


def _transfer(
    case: Case, sender: int, fault: TransferFault, name: str, output: Tensor, places: Tensor, total: int, detail: str
) -> Transfer:
    size = output.element_size()
    first, last = int(places[0]) * size, (int(places[-1]) + 1) * size - 1
    return Transfer(sender, case.rank, fault, name, first, last, len(places), total, detail)


def _reduced(case: Case, round: int, name: str, output: Tensor, wrong: Tensor) -> list[Transfer]:
    """What explains all wrong elements of a sum, or of the largest: the first that does."""
    places = wrong.nonzero().flatten()
    got = output[places].double()
    if bool((output[places].view(torch.uint8) == POISON).all()):
        detail = "the receiver's buffer as it was before: the result was not there when it was read"
        return [_transfer(case, case.rank, TransferFault.EARLY, name, output, places, output.numel(), detail)]
    tried = list(_explanations(case, round, places)) if _telling(case, len(places), 2 ** min(case.ranks, 8)) else []
    for fault, senders, predicted, detail in tried:
        if bool((predicted == got).all()):
            return [_transfer(case, s, fault, name, output, places, output.numel(), detail) for s in senders]
    detail = "the result is none that follows from what the ranks gave, with one or another left out or taken twice"
    return [_transfer(case, case.rank, TransferFault.REDUCED, name, output, places, output.numel(), detail)]


def _telling(case: Case, elements: int, explanations: int) -> bool:
    """Whether so many wrong elements cannot well fit one of so many explanations by chance."""
    values = 2 * rank_data.LARGEST[case["dtype"]] / max(1, case.ranks)
    return elements * math.log2(values) >= math.log2(explanations) + CHANCE


Explanation = tuple[TransferFault, tuple[int, ...], Tensor, str]


def _explanations(case: Case, round: int, places: Tensor) -> Iterator[Explanation]:
    """What wrong elements would be if it were for one fault: fault, senders, predicted elements, in words."""
    members = collectives.members(case)
    parts = {sender: part[places] for sender, part in collectives.chunks(case, round).items()}
    if case["operation"] == "all_reduce":
        own = parts[case.rank].double()
        yield TransferFault.EARLY, (case.rank,), own, "the receiver's own contribution, as it was before the operation"
    for count in range(1, len(members) if len(members) <= MOST_SUBSETS else 2):
        for missing in itertools.combinations(members, count):
            rest = {sender: part for sender, part in parts.items() if sender not in missing}
            told = "the result without what this rank gave" if count == 1 else "the result without what these gave"
            yield TransferFault.MISSING, missing, collectives.reduced(case, rest), told
    if round:
        before = {sender: part[places] for sender, part in collectives.chunks(case, round - 1).items()}
        for sender in members:
            value = collectives.reduced(case, {**parts, sender: before[sender]})
            yield TransferFault.STALE, (sender,), value, "the result with what this rank gave in the round before"
        yield TransferFault.EARLY, (case.rank,), collectives.reduced(case, before), "the result of the round before"
    if case["reduce"] == "sum":
        whole = collectives.reduced(case, parts)
        for sender in members:
            yield TransferFault.TWICE, (sender,), whole + parts[sender].double(), "the result with this rank twice"


def _moved(case: Case, round: int, name: str, output: Tensor, wrong: Tensor) -> list[Transfer]:
    """What the wrong elements of each sender's chunk are instead."""
    found, start = [], 0
    for sender, part in collectives.chunks(case, round).items():
        places = wrong[start : start + len(part)].nonzero().flatten()
        if len(places):
            got = output[start : start + len(part)][places]
            fault, detail = _instead(case, round, sender, part, places, got)
            found.append(_transfer(case, sender, fault, name, output, places + start, len(part), detail))
        start += len(part)
    return found


def _instead(
    case: Case, round: int, sender: int, right: Tensor, places: Tensor, got: Tensor
) -> tuple[TransferFault, str]:
    """The fault of one chunk, by what its wrong elements are."""
    held = got.view(torch.uint8)
    if bool((held == POISON).all()):
        return TransferFault.EARLY, "the receiver's buffer as it was before: nothing had come when it was read"
    if not bool(held.any()):
        return TransferFault.DROPPED, "zeros"
    if not _telling(case, len(places), 2 * case.ranks):
        return TransferFault.CORRUPT, "too few elements to say what they are instead"
    if round and bool((collectives.chunks(case, round - 1)[sender][places] == got).all()):
        return TransferFault.STALE, "what the sender gave in the round before"
    for other, chunk in _other_chunks(case, round, sender):
        if len(chunk) > int(places[-1]) and bool((chunk[places] == got).all()):
            return TransferFault.SWAPPED, other
    if shifts := _pieces(right, places, got):
        size = got.element_size()
        words = (f"{abs(each) * size} bytes {'further on' if each > 0 else 'before'}" for each in shifts)
        return TransferFault.SWAPPED, f"what belongs {' and '.join(dict.fromkeys(words))}"
    return TransferFault.CORRUPT, "no data that a rank gave"


def _other_chunks(case: Case, round: int, sender: int) -> Iterator[tuple[str, Tensor]]:
    """Further data of the round that may have come in place of the right ones."""
    for other in collectives.members(case):
        if other != sender:
            yield f"what rank {other} gave to this rank", collectives.chunks(case, round)[other]
    if case["operation"] in collectives.TO_EACH:
        for receiver in collectives.members(case):
            if receiver != case.rank:
                given = collectives.chunks(case.at(receiver, case.ranks), round)
                yield f"what the sender gave to rank {receiver}", given[sender]


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
