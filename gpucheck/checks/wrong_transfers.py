"""What wrong bytes of a collective operation are instead: whose contribution is missing, stale, swapped or dropped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from gpucheck.checks import collectives
from gpucheck.checks.wrong_chunks import POISON, telling, transfer, wrong_chunks
from gpucheck.model.case import Case
from gpucheck.model.record import Transfer
from gpucheck.model.vocabulary import TransferFault
from gpucheck.verify.expected import Expected

MOST_SUBSETS = 8  # members of which every selection is tried


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


def _reduced(case: Case, round: int, name: str, output: Tensor, wrong: Tensor) -> list[Transfer]:
    """What explains all wrong elements of a sum, or of the largest: the first that does."""
    places = wrong.nonzero().flatten()
    got = output[places].double()
    if bool((output[places].view(torch.uint8) == POISON).all()):
        detail = "the receiver's buffer as it was before: the result was not there when it was read"
        return [transfer(case, case.rank, TransferFault.EARLY, name, output, places, output.numel(), detail)]
    tried = list(_explanations(case, round, places)) if telling(case, len(places), 2 ** min(case.ranks, 8)) else []
    for fault, senders, predicted, detail in tried:
        if bool((predicted == got).all()):
            return [transfer(case, s, fault, name, output, places, output.numel(), detail) for s in senders]
    detail = "the result is none that follows from what the ranks gave, with one or another left out or taken twice"
    return [transfer(case, case.rank, TransferFault.REDUCED, name, output, places, output.numel(), detail)]


Explanation = tuple[TransferFault, tuple[int, ...], Tensor, str]


def _explanations(case: Case, round: int, places: Tensor) -> Iterator[Explanation]:
    """What wrong elements would be if it were for one fault: fault, senders, predicted elements, in words."""
    members = collectives.members(case)
    parts = {sender: part[places] for sender, part in collectives.given(case, round)}
    if case["operation"] == "all_reduce":
        own = parts[case.rank].double()
        yield TransferFault.EARLY, (case.rank,), own, "the receiver's own contribution, as it was before the operation"
    for count in range(1, len(members) if len(members) <= MOST_SUBSETS else 2):
        for missing in itertools.combinations(members, count):
            rest = {sender: part for sender, part in parts.items() if sender not in missing}
            told = "the result without what this rank gave" if count == 1 else "the result without what these gave"
            yield TransferFault.MISSING, missing, collectives.reduced(case, rest.values()), told
    if round:
        before = {sender: part[places] for sender, part in collectives.given(case, round - 1)}
        for sender in members:
            value = collectives.reduced(case, {**parts, sender: before[sender]}.values())
            yield TransferFault.STALE, (sender,), value, "the result with what this rank gave in the round before"
        value = collectives.reduced(case, before.values())
        yield TransferFault.EARLY, (case.rank,), value, "the result of the round before"
    if case["reduce"] == "sum":
        whole = collectives.reduced(case, parts.values())
        for sender in members:
            yield TransferFault.TWICE, (sender,), whole + parts[sender].double(), "the result with this rank twice"


def _moved(case: Case, round: int, name: str, output: Tensor, wrong: Tensor) -> list[Transfer]:
    """What the wrong elements of each sender's chunk are instead."""
    before = collectives.chunks(case, round - 1) if round else None
    given = collectives.chunks(case, round)
    return wrong_chunks(case, name, output, wrong, given, partial(_other_chunks, case, round), before)


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
