"""Whose fault the first wrong operation of a decoding is, among ranks that share the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gpucheck.checks.decoder.shape import COLLECTIVES, LOGITS, TOKENS, UNEMBEDDING
from gpucheck.model.case import Case
from gpucheck.model.record import Transfer
from gpucheck.model.vocabulary import TransferFault
from gpucheck.verify import bounds
from gpucheck.verify.expected import Expected
from gpucheck.verify.judge import accepted, closest


def first_transfer(
    case: Case,
    outputs: Mapping[str, Tensor],
    expected: Mapping[str, Expected],
    operation: str,
    others: Iterable[tuple[int, Mapping[str, Expected]]] = (),
) -> Transfer:
    """What is wrong about an operation, of which all before are right.

    Args:
        others: the references that the share of each other rank would have, with that rank.
    """
    output = outputs[operation]
    _, wrong, _ = closest(output, expected[operation])
    places, size = wrong.flatten().nonzero().flatten(), output.element_size()
    sender, fault, detail = _blame(case, outputs, operation, wrong)
    taken = (rank for rank, references in others if accepted(output, references[operation]) is not None)
    if fault is TransferFault.COMPUTED and (other := next(taken, None)) is not None:
        sender, fault, detail = other, TransferFault.OTHER_SHARE, f"what the weights of rank {other} give"
    first, last = int(places[0]) * size, (int(places[-1]) + 1) * size - 1
    return Transfer(sender, case.rank, fault, operation, first, last, len(places), output.numel(), detail)


def _blame(case: Case, outputs: Mapping[str, Tensor], operation: str, wrong: Tensor) -> tuple[int, TransferFault, str]:
    """Sender, fault and words."""
    if operation in (LOGITS, TOKENS):
        return case.rank, TransferFault.FOLLOWS, "every operation of this rank is right for what it was given"
    if operation not in COLLECTIVES:
        return case.rank, TransferFault.COMPUTED, "by this rank, before ranks did anything together"
    if operation == UNEMBEDDING:
        column = int(wrong.flatten(0, -2).any(0).nonzero()[0])
        return column // (wrong.shape[-1] // case.ranks), TransferFault.CORRUPT, "other columns than that rank's"
    if operation.endswith("parts"):
        return case.rank, TransferFault.CORRUPT, "its own part came back otherwise"
    return _of_sum(case, outputs[operation], outputs[f"{operation} parts"], wrong)


def _of_sum(case: Case, output: Tensor, parts: Tensor, wrong: Tensor) -> tuple[int, TransferFault, str]:
    """The rank whose part is missing in the wrong elements of a sum, or in it twice.

    Args:
        output: (S, L, B, H).
        parts: (S, L, R, B, H), as this rank saw them.
        wrong: of the shape of the output.
    """
    got, given = output[wrong].double(), parts.movedim(2, 0)[:, wrong].double()
    for sender in range(case.ranks):
        others = torch.cat([given[:sender], given[sender + 1 :]])
        twice = torch.cat([given, given[sender : sender + 1]])
        for fault, terms in ((TransferFault.MISSING, others), (TransferFault.TWICE, twice)):
            sums = bounds.reduced(terms, 0, output.dtype)
            assert sums.error is not None
            allowed = bounds.tolerance(output.dtype, sums.value, sums.error)
            if bool(((got - sums.value).abs() <= allowed).all()):
                told = "without" if fault is TransferFault.MISSING else "with twice"
                return sender, fault, f"the sum {told} the part of rank {sender}"
    return case.rank, TransferFault.REDUCED, "the sum is none of the parts that this rank saw"
