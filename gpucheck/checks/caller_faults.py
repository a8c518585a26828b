"""Faults that callers add to the expert block of gpt-oss: which of them gives exactly what was computed.

The outputs of a caller that drops a bias or exchanges gate and up are as wrong as any; compared with what each such
fault gives, they say in which of its layers it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gpucheck.checks.base import GIVES
from gpucheck.checks.block_parts import Part, parts
from gpucheck.checks.fitted_faults import fitted
from gpucheck.checks.gpt_oss_block import Change, another_checkpoint, block_reference
from gpucheck.checks.on_use import bounds, torch
from gpucheck.model.case import Case
from gpucheck.verify.expected import Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.verify.bounds import Estimate

    Inputs = dict[str, Tensor]

TOKENS = 4  # wrong ones that are computed again: enough that no other fault gives the same
LARGEST = 1 << 20  # hidden times intermediate; the smaller cases of a caller show its faults as well, in less time
UP, DOWN = ("up", "up_scale", "up_bias"), ("down", "down_scale", "down_bias")
"""Inputs of each product; experts come first, columns last."""


def explanation(case: Case, inputs: Inputs, output: Tensor, expected: Expected, part: Part | None = None) -> str:
    """``the first product: its bias is left out``: the layer and the fault that explain the wrong tokens, or "".

    Args:
        output: (T, H), of the expected shape and dtype.
        expected: what it should be.
        part: what the rank that gave the output holds of the block, where several share it.
    """
    from gpucheck.verify.judge import accepted, closest

    if case["hidden"] * case["intermediate"] > LARGEST:
        return ""
    _, wrong, _ = closest(output, expected)
    tokens = wrong.any(1).nonzero().flatten()[:TOKENS]
    if not len(tokens) or not output[tokens].isfinite().all():
        return ""  # more than another computation with the same numbers
    of_tokens: Inputs = {name: inputs[name][tokens] for name in ("x", "router_logits") if name in inputs}
    given, held = {**inputs, **of_tokens}, output[tokens]
    for layer, fault, change in (*sharing_faults(case, part), *reload_faults(case), *faults()):
        if accepted(held, block_reference(case, given, change, part)["y"]) is not None:
            return f"{layer}: {fault} ({GIVES})"
    return fitted(case, inputs, output, wrong.any(1).nonzero().flatten(), part)


def faults() -> Iterator[tuple[str, str, Change]]:
    """Layer, words and what is computed otherwise, of each known fault."""
    yield "router", "its weights are a softmax over all experts, not over those chosen", Change(gates=_of_all)
    yield "router", "its weights go to other experts of the token", Change(gates=lambda gates, *_: gates.roll(1, 1))
    yield "router", "its weights are not applied", Change(gates=lambda gates, *_: gates * 0 + 1)
    yield "router", "its weights are logits, without a softmax", Change(gates=_without_softmax)
    yield "router", "its weights go to the next row in the order of experts", Change(gates=_of_row_before)
    yield "router", "experts are chosen by logits of the other sign", Change(scores=_negated)
    yield "first product", "its rows are of other tokens, in reverse", Change(rows=_reversed)
    yield "reduce", "the expert chosen last is left out", Change(gates=_without_last)
    yield "first product", "its bias is left out", Change(partial(_edited, names=("up_bias",), edit=_zero))
    yield "second product", "its bias is left out", Change(partial(_edited, names=("down_bias",), edit=_zero))
    yield "activation", "nothing is clamped", Change(limit=1e30)
    yield "activation", "the bias of the first product is added behind the clamp", Change(activation=_bias_behind_clamp)
    yield "activation", "the linear part is taken without adding one", Change(activation=_without_one)
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


def sharing_faults(case: Case, part: Part | None) -> Iterator[tuple[str, str, Change]]:
    """The same for a rank that shares the block with others."""
    if part is None:
        return
    for other in parts(case.params):
        if other != part:
            fault = f"{part.group} rank {part.index} holds what is rank {other.index}'s"
            yield "loader", fault, Change(part=lambda part, other=other: other)  # type: ignore[misc]
    if part.bias:
        yield "second product", "no rank adds its bias", Change(part=lambda part: replace(part, bias=False))
    else:
        fault = "its bias is added by more ranks than the first"
        yield "second product", fault, Change(part=lambda part: replace(part, bias=True))


STALE = (
    (*UP, *DOWN),
    ("up", "up_scale", "down", "down_scale"),
    ("up_scale", "down_scale"),
    ("up", "down"),
    ("up_bias", "down_bias"),
    UP,
    DOWN,
    *((name,) for name in (*UP, *DOWN)),
)
"""What a module may keep of a checkpoint together."""


def reload_faults(case: Case) -> Iterator[tuple[str, str, Change]]:
    """The same for a module that was loaded with another checkpoint before."""
    if not case.params.get("reload"):
        return
    for names in STALE:
        fault = f"{' and '.join(names)} are still those of the checkpoint before"
        yield "loader", fault, Change(partial(_kept, names=names))


def _kept(inputs: Inputs, names: tuple[str, ...]) -> Inputs:
    before = another_checkpoint(inputs)
    return {**inputs, **{name: before[name] for name in names}}


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


def _bias_behind_clamp(up: Estimate, bias: Tensor, alpha: float, limit: float) -> Estimate:
    gate, linear = up.value[..., 0::2].clamp(max=limit), up.value[..., 1::2].clamp(-limit, limit)
    return _activated(up, bias, gate + bias[0::2], linear + bias[1::2] + 1, alpha)


def _without_one(up: Estimate, bias: Tensor, alpha: float, limit: float) -> Estimate:
    whole = up.value + bias
    return _activated(up, bias, whole[..., 0::2].clamp(max=limit), whole[..., 1::2].clamp(-limit, limit), alpha)


def _activated(up: Estimate, bias: Tensor, gate: Tensor, factor: Tensor, alpha: float) -> Estimate:
    """``g * sigmoid(alpha g) * factor``, with the error of an activation that nothing clamps."""
    return replace(bounds.swiglu(bounds.add(up, bias), alpha, 1e30), value=gate * torch.sigmoid(alpha * gate) * factor)


def _of_all(gates: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
    return logits.softmax(-1).gather(1, ids).to(torch.bfloat16).double()


def _without_softmax(gates: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, ids).to(torch.bfloat16).double()


def _of_row_before(gates: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
    order = ids.flatten().argsort(stable=True)
    moved = gates.flatten().clone()
    moved[order] = gates.flatten()[order].roll(1)
    return moved.view_as(gates)


def _negated(logits: Tensor) -> Tensor:
    return -logits


def _reversed(tokens: Tensor) -> Tensor:
    return tokens.flip(0)


def _without_last(gates: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
    return gates.scatter(1, logits.gather(1, ids).argmin(1, keepdim=True), 0.0)
