"""Faults that engines add around and in a fused kernel for experts: which of them gives exactly what was computed.

Outputs that are wrong say little; compared with what each such fault gives, they say in which layer it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from gpucheck.checks.base import GIVES
from gpucheck.checks.fused_experts import Change, Choice, chosen, experts_reference, held_experts
from gpucheck.checks.on_use import bounds, torch
from gpucheck.model.case import Case
from gpucheck.verify.expected import Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.verify.bounds import Estimate

    Inputs = dict[str, Tensor]

FEWEST, MOST = 4, 64  # wrong tokens that are computed again, so that no other fault gives the same
WORK = 1 << 22  # of these, times hidden, times intermediate
LARGEST = 1 << 20  # hidden times intermediate; smaller cases show an engine's faults as well, in less time
BLOCKS = (16, 32, 64, 128)  # of the terms of a product, in one step of the kernel


@dataclass(frozen=True)
class Fault:
    """A fault of one layer."""

    layer: str
    words: str
    change: Change
    but: int | None = None  # an expert of whose tokens the fault says nothing


def explanation(
    case: Case, inputs: Inputs, outputs: Inputs, expected: dict[str, Expected], wrong: Sequence[str]
) -> str:
    """``first product: ...``: the layer and the fault that explain the wrong outputs; else where they begin, or "".

    Args:
        expected: what outputs should be.
        wrong: the names of outputs of the expected shape and dtype that are not, the first one first.
    """
    from gpucheck.verify.judge import accepted, closest

    if not wrong:
        return ""
    case = replace(case, data="normal")  # a fault need not keep to what is exact
    if wrong[0] == "weights":
        for words, weights in _routers(case, inputs["logits"]):
            if accepted(outputs["weights"], replace(expected["weights"], estimate=weights)) is not None:
                return f"router: {words} ({GIVES})"
        return "first wrong: the router"
    if case["hidden"] * case["intermediate"] > LARGEST:
        return ""
    _, mask, _ = closest(outputs["y"], expected["y"])
    every = chosen(case, inputs["logits"])
    count = min(MOST, max(FEWEST, WORK // (case["hidden"] * case["intermediate"])))
    for fault in faults(case, every):
        told = mask.any(1) if fault.but is None else mask.any(1) & (every.ids != fault.but).all(1)
        picked = told.nonzero().flatten()[:count]
        if not len(picked) or not outputs["y"][picked].isfinite().all():
            continue
        given = {**inputs, "x": inputs["x"][picked], "logits": inputs["logits"][picked]}
        answer = experts_reference(case, given, chosen(case, given["logits"]), fault.change)
        if accepted(outputs["y"][picked], answer) is not None:
            return f"{fault.layer}: {fault.words} ({GIVES})"
    return ""


def faults(case: Case, choice: Choice) -> Iterator[Fault]:
    """Each known fault of a case."""
    yield Fault("router", "its weights go to other experts of the token", Change(gates=_to_others))
    yield Fault("router", "its weights are not applied", Change(gates=lambda choice, _: choice.gates.value * 0 + 1))
    yield Fault("reduce", "the expert chosen last is left out", Change(gates=_without_last))
    yield Fault("activation", "the gate is multiplied without silu", Change(silu=_without_silu))
    yield Fault("activation", "gelu in place of silu", Change(silu=_gelu))
    yield Fault("loader", "gate and up are exchanged", Change(partial(_edited, names=("up",), edit=_exchanged)))
    yield Fault("loader", "gate and up as halves are in turn", Change(partial(_edited, names=("up",), edit=_in_turn)))
    for name in ("up", "down"):
        for places in (1, -1):
            edit = partial(_shifted, places=places)
            fault = f"columns of {name} are shifted by one"
            yield Fault("loader", fault, Change(partial(_edited, names=(name,), edit=edit)))
    held = held_experts(case)
    if len(held) < case["experts"]:
        others = tuple(sorted({*range(case["experts"])} - {*held}))
        yield Fault("expert map", "the experts of the other rank are computed", Change(held=others))
        yield Fault("expert map", "experts of all ranks are computed", Change(held=tuple(range(case["experts"]))))
    used = [expert for expert in held if bool((choice.ids == expert).any())]
    for places, words in ((1, "after"), (-1, "before")):
        for names in (("up", "down"), ("up",), ("down",)):
            edit = partial(_moved, experts=held, places=places)
            fault = f"weights of {' and '.join(names)} are those of the expert {words}"
            yield Fault("loader", fault, Change(partial(_edited, names=names, edit=edit)))
        edit = partial(_moved, experts=used, places=places)
        fault = f"a block of rows gets the expert of the block {words}"
        change = Change(partial(_edited, names=("up", "down"), edit=edit))
        yield Fault("alignment", fault, change, used[-1 if places == 1 else 0] if used else None)
    for number, (product, size) in enumerate((("first", "hidden"), ("second", "intermediate"))):
        for block in BLOCKS:
            left = case[size] % block
            if left and left < case[size]:
                terms = (case[size] - left, None) if number == 0 else (None, case[size] - left)
                yield Fault(f"{product} product", f"the last {left} terms are left out", Change(terms=terms))


def _routers(case: Case, logits: Tensor) -> Iterator[tuple[str, Estimate]]:
    """Words and weights (T, E) of each known fault of a router."""
    choice, of_all = chosen(case, logits), bounds.softmax(logits.double())
    assert of_all.error is not None and choice.gates.error is not None
    picked = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, choice.ids, True)
    yield "its weights are not renormalised", bounds.Estimate(of_all.value * picked, of_all.error * picked)
    for words, ids in (
        ("its weights go to other experts of the token", choice.ids.roll(1, 1)),
        ("it takes the weights of the experts after", (choice.ids + 1) % case["experts"]),
    ):
        value, error = (
            torch.zeros(logits.shape, dtype=torch.float64).scatter(1, ids, each)
            for each in (choice.gates.value, choice.gates.error)
        )
        yield words, bounds.Estimate(value, error)
    yield "its weights are all one", bounds.Estimate(picked.double(), torch.zeros_like(of_all.error))


def _edited(inputs: Inputs, names: tuple[str, ...], edit: Callable[[Tensor], Tensor]) -> Inputs:
    return {**inputs, **{name: edit(inputs[name]) for name in names}}


def _moved(value: Tensor, experts: list[int], places: int) -> Tensor:
    """Each of these experts has what is of the one that many places further on."""
    moved = value.clone()
    moved[experts] = value[experts].roll(-places, 0)
    return moved


def _shifted(value: Tensor, places: int) -> Tensor:
    return value.roll(places, 1)


def _exchanged(value: Tensor) -> Tensor:
    """(E, 2I, H) with both halves exchanged."""
    return value.roll(value.shape[1] // 2, 1)


def _in_turn(value: Tensor) -> Tensor:
    """(E, 2I, H) that is gate and up in turn, taken for halves."""
    return value.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _to_others(choice: Choice, logits: Tensor) -> Tensor:
    return choice.gates.value.roll(1, 1)


def _without_last(choice: Choice, logits: Tensor) -> Tensor:
    gates = choice.gates.value.clone()
    gates[:, -1] = 0
    return gates


def _without_silu(x: Estimate) -> Estimate:
    assert x.error is not None
    (gate, up), (gate_error, up_error) = x.value.chunk(2, -1), x.error.chunk(2, -1)
    return bounds.times(bounds.Estimate(gate, gate_error), bounds.Estimate(up, up_error))


def _gelu(x: Estimate) -> Estimate:
    assert x.error is not None
    gate, up = x.value.chunk(2, -1)
    value = torch.nn.functional.gelu(gate) * up
    return bounds.Estimate(value, bounds.ELEMENTARY * 8 * value.abs() + x.error.chunk(2, -1)[0] * 2 * up.abs())
