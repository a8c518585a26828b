"""Faults of callers that have a size: which number, and in which layer, explains what an expert block gave.

A block is a sum of experts' rows with the router's weights. What is known of the experts is held fixed and the rest is
fitted to wrong outputs: a fit that leaves no more than rounding shows what was computed otherwise, and where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpucheck.checks.base import GIVES
from gpucheck.checks.block_parts import Part, parts
from gpucheck.checks.gpt_oss_block import NO_CHANGE, Change, block_reference
from gpucheck.checks.matmul import SWIGLU
from gpucheck.checks.on_use import bounds, operands, torch
from gpucheck.model.case import Case

if TYPE_CHECKING:
    from torch import Tensor

    Inputs = dict[str, Tensor]

FITTED = "fitted to these outputs"
TOKENS = 4  # wrong ones that are fitted
MOST = 64  # tokens, and experts, whose rows are computed
EASE = 4.0  # times the rounding of a sum that a fit may leave
DETERMINED = 0.85  # unknowns for each number that they are fitted to, at most
SMALL = 0.7  # of what is left without a change: what a constant that explains outputs leaves at most
GRID, SECTIONS = 12, 14  # of the search for a constant
ALIKE = 0.02  # of weights that are the same, relative


@dataclass(frozen=True)
class _Rows:
    """What experts make of tokens, before the router's weights; T tokens, E experts of this rank, H columns."""

    products: Tensor  # (T, E, H) without bias
    bias: Tensor  # (E, H), zeros where this rank adds none
    down: Tensor  # (E, I, H)
    gates: Tensor  # (T, E): the router's weights; 0 where it did not choose the expert
    first: int  # number of the first expert

    def whole(self) -> Tensor:
        return self.products + self.bias


def fitted(case: Case, inputs: Inputs, output: Tensor, wrong: Tensor, part: Part | None) -> str:
    """The layer, and what in it explains the wrong tokens of a block: ``router: ...``; "" where no fit does.

    Args:
        inputs: of the case, with the ``router_logits`` (T, E) that were given where these are known.
        output: (T, H).
        wrong: numbers of wrong tokens.
        part: what this rank holds, where several share the block.
    """
    if max(len(inputs["x"]), case["experts"]) > MOST:
        return ""
    wrong = wrong[:TOKENS]
    rows = _rows(case, inputs, part or parts({**case.params, "tp": 1, "ep": 1})[0])
    y = output.double()
    return (
        _of_weights(rows, y, wrong)
        or _of_activation(case, inputs, output, wrong, part)
        or _of_tokens(rows, y, wrong)
        or _before_second_product(rows, y, wrong)
    )


def _rows(case: Case, inputs: Inputs, part: Part) -> _Rows:
    from gpucheck.checks.routing import reference_topk

    held, x = part.held(inputs), inputs["x"].double()
    given = inputs.get("router_logits")
    logits = x @ inputs["router"].double().T if given is None else given.double()
    chosen, ids = reference_topk(logits, case["top_k"])
    gates = torch.zeros(logits.shape, dtype=torch.float64).scatter(1, ids, chosen.softmax(-1).bfloat16().double())
    products, weights = [], []
    for expert in range(len(held["up"])):
        up, down = (
            operands.decode_weight("mxfp4", held[name][expert], held[f"{name}_scale"][expert]).double()
            for name in ("up", "down")
        )
        inner = bounds.swiglu(bounds.Estimate(x @ up + held["up_bias"][expert].double(), None), *SWIGLU).value
        products.append(inner.bfloat16().double() @ down)
        weights.append(down)
    stacked = torch.stack(products, 1), held["down_bias"].double(), torch.stack(weights)
    return _Rows(*stacked, gates[:, part.experts], part.experts.start)


def _fit(y: Tensor, columns: Tensor, noise: Tensor) -> Tensor | None:
    """(n,): the multiples of ``columns`` (n, H) that give ``y`` (H,) but for its rounding; None where none do.

    Columns that add nothing are left out.
    """
    given = columns.abs().amax(-1) > 0
    if bool((y.abs() <= noise).all()):
        return torch.zeros(len(columns), dtype=torch.float64)
    if not 0 < int(given.sum()) <= DETERMINED * len(y):
        return None
    for _ in range(2):  # once more with those that count
        places = given.nonzero().flatten()
        scaled = (columns[places] / noise).mT
        found = torch.linalg.lstsq(scaled, (y / noise)[:, None]).solution[:, 0]
        kept = found.abs() * scaled.abs().amax(0) > EASE
        if not bool(((scaled @ found - y / noise).abs() <= EASE).all()) or not bool(kept.any()):
            return None
        given = torch.zeros_like(given).scatter(0, places[kept], True)
        weights = torch.zeros(len(columns), dtype=torch.float64).scatter(0, places[kept], found[kept])
    return weights


def _noise(rows: _Rows, y: Tensor, token: int) -> Tensor:
    """(H,): how far rounding to bf16, of each row and of their sum, may take an output."""
    terms = (rows.gates[token][:, None] * rows.whole()[token]).abs().sum(0)
    return 2.0**-8 * (y[token].abs() + terms) + 2.0**-20


def _of_weights(rows: _Rows, y: Tensor, wrong: Tensor) -> str:
    """Weights of the experts' rows and biases that give the outputs."""
    told = ""
    for token in wrong.tolist():
        columns = torch.cat([rows.products[token], rows.bias])
        found = _fit(y[token], columns, _noise(rows, y, token))
        if found is None:
            return ""
        told = told or _weights_words(rows, token, *found.chunk(2))
    return told


def _weights_words(rows: _Rows, token: int, weights: Tensor, of_bias: Tensor) -> str:
    """What the weights of rows and of biases mean; "" where they are as they should be."""
    wanted, has_bias = rows.gates[token], bool((rows.bias != 0).any())
    used, chosen = (_experts(rows, each) for each in (weights, wanted))
    if _alike(weights, wanted):
        if not has_bias or _alike(of_bias, wanted):
            return ""
        if _alike(of_bias, (wanted != 0).double()):
            return f"second product: its bias is added without the router's weights ({FITTED})"
        return f"second product: the weights of its bias are {_listed(rows, of_bias)}, not the router's ({FITTED})"
    if not set(used) <= set(chosen):
        words = f"token {token} is computed by expert {_and(used)}, expected {_and(chosen) or 'none of this rank'}"
        return f"router: {words} ({FITTED})"
    left = [expert for expert in chosen if expert not in used]
    if left and _alike(weights, torch.where(weights == 0, 0.0, wanted)):
        return f"reduce: of token {token}, what expert {_and(left)} gives is left out ({FITTED})"
    words = f"its weights of token {token} are {_listed(rows, weights)}, expected {_listed(rows, wanted)}"
    return f"router: {words} ({FITTED})"


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() <= ALIKE * torch.maximum(one.abs(), other.abs()) + ALIKE / 10).all())


def _experts(rows: _Rows, weights: Tensor) -> list[int]:
    return [rows.first + place for place in weights.nonzero().flatten().tolist()]


def _listed(rows: _Rows, weights: Tensor) -> str:
    return _and([f"{float(weights[expert - rows.first]):.3g} of {expert}" for expert in _experts(rows, weights)])


def _and(each: list[int] | list[str]) -> str:
    return " and ".join(map(str, each))


def _of_tokens(rows: _Rows, y: Tensor, wrong: Tensor) -> str:
    """Rows that hold other tokens, or are added to other ones."""
    count, experts, width = rows.products.shape
    pairs = torch.ones((count, experts), dtype=torch.bool) if 2 * count * experts <= width else rows.gates != 0
    tokens, owners = pairs.nonzero().T
    columns, told = rows.whole()[tokens, owners], ""
    for token in wrong.tolist():
        found = _fit(y[token], columns, _noise(rows, y, token))
        if found is None:
            return ""
        for place in found.nonzero().flatten().tolist():
            source, expert = int(tokens[place]), int(owners[place])
            if source == token or told:
                continue
            row = f"expert {rows.first + expert}"
            if _alike(found[place], rows.gates[token, expert]):
                told = f"first product: the row of token {token} for {row} is of token {source} ({FITTED})"
            else:
                told = f"reduce: the row of token {source} for {row} is added to token {token} ({FITTED})"
    return told


def _before_second_product(rows: _Rows, y: Tensor, wrong: Tensor) -> str:
    """Whether what the second product is given is wrong, and not how it computes: some rows, if not the right ones."""
    for token in wrong.tolist():
        chosen = rows.gates[token] != 0
        columns = rows.down[chosen].flatten(0, 1)
        rest = y[token] - (rows.gates[token][:, None] * rows.bias).sum(0)
        if _fit(rest, columns, _noise(rows, y, token)) is None:
            return ""
    return f"first product or activation: the second product gives these outputs of other rows ({FITTED})"


def _of_activation(case: Case, inputs: Inputs, output: Tensor, wrong: Tensor, part: Part | None) -> str:
    """The constants of the activation that give the outputs."""
    from gpucheck.verify.judge import accepted

    of_tokens: Inputs = {name: inputs[name][wrong] for name in ("x", "router_logits") if name in inputs}
    given, held = {**inputs, **of_tokens}, output[wrong]

    def left(change: Change) -> float:
        value = block_reference(case, given, change, part)["y"].estimate.value
        return float(((value - held.double()).abs() / (held.double().abs() + 1)).sum())

    def best(change: Callable[[float], Change]) -> tuple[float, float]:
        return _least(lambda logarithm: left(change(2.0**logarithm)))

    most = SMALL * left(NO_CHANGE)
    for words, wanted, change in _constants():
        found, cost = best(change)
        if cost > most:
            continue
        for digits in (2, 3, 5):
            value = float(f"{2.0**found:.{digits}g}")
            if accepted(held, block_reference(case, given, change(value), part)["y"]) is not None:
                return f"activation: {words} {value:g}, expected {wanted:g} ({GIVES})"
    return ""


def _constants() -> Iterator[tuple[str, float, Callable[[float], Change]]]:
    yield "its alpha is", SWIGLU[0], lambda value: Change(alpha=value)
    yield "its clamp is at", SWIGLU[1], lambda value: Change(limit=value)


def _least(cost: Callable[[float], float], low: float = -3.0, high: float = 6.0) -> tuple[float, float]:
    """Where a function is least between two ends, and what it is there: a grid, and golden sections around its best."""
    width = (high - low) / GRID
    middle = min((low + step * width for step in range(GRID + 1)), key=cost)
    low, high, ratio = middle - width, middle + width, (math.sqrt(5) - 1) / 2
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    costs = [cost(each) for each in inner]
    for _ in range(SECTIONS):
        if costs[0] < costs[1]:
            high, inner = inner[1], [inner[1] - ratio * (inner[1] - low), inner[0]]
            costs = [cost(inner[0]), costs[0]]
        else:
            low, inner = inner[0], [inner[1], inner[0] + ratio * (high - inner[0])]
            costs = [costs[1], cost(inner[1])]
    return (low + high) / 2, min(costs)
