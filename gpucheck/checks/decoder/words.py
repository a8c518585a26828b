"""Where a decoding went wrong first, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpucheck.checks.decoder.shape import COLLECTIVES, EMBEDDING, IN_LAYER, LOGITS, ORDER, TOKENS, UNWRITTEN
from gpucheck.model.record import Mismatch

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.verify.expected import Expected

WHOLE = (LOGITS, TOKENS)


def in_order(mismatches: list[Mismatch], layers: int) -> list[Mismatch]:
    """Operations in the order of their first wrong step, layer and place in it; the results of the whole at the end."""

    def key(mismatch: Mismatch) -> tuple[bool, int, int, int]:
        step, name = mismatch.first[0], mismatch.output
        layer = mismatch.first[1] if name in IN_LAYER else -1 if name == EMBEDDING else layers
        return name in WHOLE, step, layer, ORDER.index(name)

    return sorted(mismatches, key=key)


def first_wrong(
    ordered: list[Mismatch], outputs: Mapping[str, Tensor], expected: Mapping[str, Expected], ranks: int = 0
) -> str:
    """Step, layer and operation of the first mismatch, and the first token that is another; "" without mismatches.

    Of ranks that share the model also whether the operation is one that they do together.
    """
    if not ordered:
        return ""
    first = ordered[0]
    where = f"step {first.first[0]}" + (f", layer {first.first[1]}" if first.output in IN_LAYER else "")
    words = f"first wrong at {where}, {first.output}" + (f": {_whose(first.output)}" if ranks else "")
    if first.output in WHOLE:
        words = f"every operation is right for what it was given, but from {where} on the whole is not: {first.output}"
    tokens = _tokens(ordered, outputs, expected)
    return f"{words}; {tokens}" if tokens else words


def _whose(operation: str) -> str:
    collective = COLLECTIVES.get(operation)
    return f"the {collective}, this rank's own part is right" if collective else "computed by this rank, no collective"


def _tokens(ordered: list[Mismatch], outputs: Mapping[str, Tensor], expected: Mapping[str, Expected]) -> str:
    other = next((mismatch for mismatch in ordered if mismatch.output == TOKENS), None)
    if other is None:
        return "no other token follows"
    step, sequence = other.first
    got, wanted = int(outputs[TOKENS][step, sequence]), int(expected[TOKENS].estimate.value[step, sequence])
    if got == UNWRITTEN:
        return ""
    return f"first other token at step {step} of sequence {sequence}: {got}, the reference's is {wanted}"
