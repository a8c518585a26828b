"""Which fault of a rank, or of what ranks do together, gives exactly the wrong numbers of a shared expert block.

All numbers are exact, so an explanation is one if it gives the same bits, and none otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gpucheck.checks.sharded.exact_block import block
from gpucheck.checks.sharded.shard_reference import ORDER, arriving, one_part
from gpucheck.checks.sharded.shares import local_ids, owners, share
from gpucheck.model.case import Case
from gpucheck.model.record import Transfer
from gpucheck.model.vocabulary import TransferFault
from gpucheck.verify.expected import Expected

Tensors = Mapping[str, Tensor]


def transfers(case: Case, inputs: Tensors, outputs: Tensors, expected: Mapping[str, Expected]) -> list[Transfer]:
    """What explains the first wrong output; those behind it follow from it."""
    for name in ORDER:
        if name in expected and (wrong := _wrong(outputs, expected, name)) is not None and bool(wrong.any()):
            made = {"received": _received, "slots": _computed, "partial": _computed, "y": _summed}[name]
            return made(_Wrong(case, inputs, outputs, name, wrong))
    return []


def _wrong(outputs: Tensors, expected: Mapping[str, Expected], name: str) -> Tensor | None:
    right, output = expected[name], outputs.get(name)
    if output is None or output.shape != right.estimate.value.shape or output.dtype != right.dtype:
        return None
    return output.double() != right.estimate.value


class _Wrong:
    """An output with wrong elements."""

    def __init__(self, case: Case, inputs: Tensors, outputs: Tensors, name: str, wrong: Tensor) -> None:
        self.case, self.inputs, self.outputs = case, dict(inputs), outputs
        self.name, self.output, self.wrong = name, outputs[name], wrong
        self.rank, self.ranks = case.rank, case.ranks
        self.arriving = arriving(case, self.inputs, share(case["experts"], case.rank, case.ranks))

    def transfer(self, sender: int, fault: TransferFault, detail: str, rows: Tensor | None = None) -> Transfer:
        """``rows``: those that came from the sender; None: all."""
        held = self.wrong if rows is None else self.wrong & rows[:, None]
        places, size = held.flatten().nonzero().flatten(), self.output.element_size()
        total = held.numel() if rows is None else int(rows.sum()) * held.shape[1]
        first, last = int(places[0]) * size, (int(places[-1]) + 1) * size - 1
        return Transfer(sender, self.rank, fault, self.name, first, last, len(places), total, detail)


def _received(wrong: _Wrong) -> list[Transfer]:
    """Of each sender whose tokens came otherwise: whether they are other tokens, or none."""
    tokens, here = wrong.inputs["x"], wrong.arriving[0]
    found = []
    for sender in range(wrong.ranks):
        own = share(wrong.case["m"], sender, wrong.ranks)
        rows = (here >= own.start) & (here < own.stop)
        bad = wrong.wrong.any(1) & rows
        if bool(bad.any()):
            known = all(bool((tokens == row).all(1).any()) for row in wrong.output[bad])
            fault = TransferFault.SWAPPED if known else TransferFault.CORRUPT
            detail = "other tokens than those that have experts here" if known else "no token of any rank"
            found.append(wrong.transfer(sender, fault, detail, rows))
    return found


def _computed(wrong: _Wrong) -> list[Transfer]:
    """A rank's own part: that of another rank's share, with rows that nobody wrote, or wrong in another way."""
    for other, detail in _other_shares(wrong):
        return [wrong.transfer(other, TransferFault.OTHER_SHARE, detail)]
    if wrong.name == "partial" and (owner := _unwritten(wrong)) is not None:
        detail = "wrong are tokens with slots whose experts are elsewhere, and no others: rows that nobody wrote here"
        return [wrong.transfer(owner, TransferFault.UNWRITTEN, f"{detail} were summed")]
    detail = ""
    if wrong.name == "slots" and torch.equal(wrong.output, wrong.arriving[1]):
        detail = "the numbers of the whole model, in a table of this rank's experts alone"
    return [wrong.transfer(wrong.rank, TransferFault.COMPUTED, detail)]


def _other_shares(wrong: _Wrong) -> Iterator[tuple[int, str]]:
    """The ranks whose share of the work gives the rank's part, up to the output that is wrong."""
    case, inputs, outputs = wrong.case, wrong.inputs, wrong.outputs
    for other in (rank for rank in range(wrong.ranks) if rank != wrong.rank):
        detail = f"bit for bit what the share of rank {other} gives"
        if case["parallel"] == "tensor":
            parts = (one_part(case, inputs, other, with_bias=bias).value for bias in (other == 0, wrong.rank == 0))
            if any(torch.equal(wrong.output.double(), part) for part in parts):
                yield other, detail
            continue
        slots = local_ids(wrong.arriving[1], share(case["experts"], other, wrong.ranks))
        if torch.equal(outputs["slots"], slots):
            yield other, detail


def _unwritten(wrong: _Wrong) -> int | None:
    """The rank that holds the experts of absent slots, if tokens with such slots are NaN and all others right."""
    ids, absent = wrong.inputs["ids"], wrong.inputs["ids"] < 0
    if wrong.case["parallel"] != "tensor":
        ids = wrong.arriving[1]
        absent = local_ids(ids, share(wrong.case["experts"], wrong.rank, wrong.ranks)) < 0
    rows = wrong.wrong.any(1)
    poisoned = bool(torch.isnan(wrong.output[rows]).all())  # what memory that nobody wrote to is filled with
    return _owner(wrong, ids, absent) if poisoned and torch.equal(rows, absent.any(1)) else None


def _owner(wrong: _Wrong, ids: Tensor, absent: Tensor) -> int:
    """The rank of the first absent slot's expert; this one where no rank has it."""
    held = ids[absent]
    elsewhere = held[held >= 0]
    return int(owners(wrong.case["experts"], wrong.ranks)[int(elsewhere[0])]) if len(elsewhere) else wrong.rank


def _summed(wrong: _Wrong) -> list[Transfer]:
    """Whose part is missing in what ranks add up, or in it twice; this rank's own part is right."""
    case, inputs = wrong.case, wrong.inputs
    whole = block(inputs, inputs["x"], inputs["ids"], inputs["id_gates"]).value
    own = share(case["m"], wrong.rank, wrong.ranks) if case["parallel"] == "dispatch" else slice(None)
    got = wrong.output.double()
    for sender in range(wrong.ranks):
        part = one_part(case, inputs, sender, with_bias=sender == 0).value[own]
        for fault, total in ((TransferFault.MISSING, whole[own] - part), (TransferFault.TWICE, whole[own] + part)):
            if torch.equal(got, total):
                told = "without" if fault is TransferFault.MISSING else "with twice"
                return [wrong.transfer(sender, fault, f"the sum {told} the part of rank {sender}")]
    return [
        wrong.transfer(wrong.rank, TransferFault.REDUCED, "this rank's part is right, and the sum is none of parts")
    ]
