"""Faults that callers add to the expert block of gpt-oss: which of them gives exactly what was computed.

The outputs of a caller that drops a bias or exchanges gate and up are as wrong as any; compared with what each such
fault gives, they say in which of its layers it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from gpucheck.checks.gpt_oss_block import Change, block_reference
from gpucheck.model.case import Case
from gpucheck.verify.expected import Expected

if TYPE_CHECKING:
    from torch import Tensor

    Inputs = dict[str, Tensor]

TOKENS = 4  # wrong ones that are computed again: enough that no other fault gives the same
LARGEST = 1 << 20  # hidden times intermediate; the smaller cases of a caller show its faults as well, in less time
UP, DOWN = ("up", "up_scale", "up_bias"), ("down", "down_scale", "down_bias")
"""Inputs of each product; experts come first, columns last."""


def explanation(case: Case, inputs: Inputs, output: Tensor, expected: Expected) -> str:
    """``the first product: its bias is left out``: the layer and the fault that explain the wrong tokens, or "".

    Args:
        output: (T, H), of the expected shape and dtype.
        expected: what it should be.
    """
    from gpucheck.verify.judge import accepted, closest

    if case["hidden"] * case["intermediate"] > LARGEST:
        return ""
    _, wrong, _ = closest(output, expected)
    tokens = wrong.any(1).nonzero().flatten()[:TOKENS]
    if not output[tokens].isfinite().all():
        return ""  # more than another computation with the same numbers
    given, held = {**inputs, "x": inputs["x"][tokens]}, output[tokens]
    for layer, fault, change in faults():
        if accepted(held, block_reference(case, given, change)["y"]) is not None:
            return f"{layer}: {fault} (that gives exactly these outputs)"
    return ""


def faults() -> Iterator[tuple[str, str, Change]]:
    """Layer, words and what is computed otherwise, of each known fault."""
    yield "router", "its weights are a softmax over all experts, not over those chosen", Change(gates=_of_all)
    yield "router", "its weights go to other experts of the token", Change(gates=lambda gates, *_: gates.roll(1, 1))
    yield "router", "its weights are not applied", Change(gates=lambda gates, *_: gates * 0 + 1)
    yield "reduce", "the expert chosen last is left out", Change(gates=_without_last)
    yield "first product", "its bias is left out", Change(partial(_edited, names=("up_bias",), edit=_zero))
    yield "second product", "its bias is left out", Change(partial(_edited, names=("down_bias",), edit=_zero))
    yield "activation", "nothing is clamped", Change(limit=1e30)
    yield "activation", "sigmoid(x) in place of sigmoid(1.702 x)", Change(alpha=1.0)
    yield "loader", "gate and up are exchanged", Change(partial(_edited, names=UP, edit=_exchanged))
    yield "loader", "gate and up in turn are taken for halves", Change(partial(_edited, names=UP, edit=_in_halves))
    yield "loader", "gate and up as halves are taken in turn", Change(partial(_edited, names=UP, edit=_in_turn))
    for places, words in ((-1, "the next expert's"), (1, "the expert's before")):
        for names in (("up_scale", "down_scale"), ("up_scale",), ("down_scale",), ("up",), ("down",), ("up", "down")):
            edit = partial(_rolled, places=places, dim=0)
            yield "loader", f"{' and '.join(names)} are {words}", Change(partial(_edited, names=names, edit=edit))
        for columns in (("up",), ("down",), UP, DOWN):
            edit = partial(_rolled, places=places, dim=-1)
            fault = f"columns of {' and '.join(columns)} are shifted by one"
            yield "loader", fault, Change(partial(_edited, names=columns, edit=edit))


def _edited(inputs: Inputs, names: tuple[str, ...], edit: Callable[[Tensor], Tensor]) -> Inputs:
    return {**inputs, **{name: edit(inputs[name]) for name in names}}


def _zero(value: Tensor) -> Tensor:
    return value * 0


def _exchanged(value: Tensor) -> Tensor:
    return value.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _in_halves(value: Tensor) -> Tensor:
    return value.unflatten(-1, (-1, 2)).mT.flatten(-2)


def _in_turn(value: Tensor) -> Tensor:
    return value.unflatten(-1, (2, -1)).mT.flatten(-2)


def _rolled(value: Tensor, places: int, dim: int) -> Tensor:
    return value.roll(places, dim)


def _of_all(gates: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
    import torch

    return logits.softmax(-1).gather(1, ids).to(torch.bfloat16).double()


def _without_last(gates: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
    return gates.scatter(1, logits.gather(1, ids).argmin(1, keepdim=True), 0.0)
