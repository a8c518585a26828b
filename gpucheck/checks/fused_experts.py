"""Experts in bf16 as engines compute them by default: by a Triton kernel of their own, launched for both products.

Router logits -> weights and ids of the chosen experts -> gate and up -> silu and product -> down, weighted -> sum over
the experts of a token. With a share, some experts belong to other ranks, and their part of the sum is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.engine_block import by_engine
from gpucheck.checks.on_use import bounds, experts, operands, torch
from gpucheck.library.engines.base import Sizes
from gpucheck.library.engines.own_kernels import Share
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.record import Mismatch, NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.verify.bounds import Estimate

    Inputs = dict[str, Tensor]

MOST_EXACT = 512  # columns of exact data: sums of more could round
MOST_EXPERTS = 256  # that logits in whole steps tell apart in bf16
OUT = -200.0  # logit of experts whose weight is zero in fp32
ONE = 16.0  # first coordinate of exact tokens: it lifts every gate to where silu returns it unchanged
RANKS = 2  # of a share
RANK = {"layer": 0, "functions": 1}  # by entry: a layer that is alone can be the first of them


def spec(name: str, summary: str, entries: tuple[str, ...]) -> CheckSpec:
    """The parameters of the experts, for the check of one engine.

    Args:
        entries: those of :meth:`gpucheck.library.engines.base.Engine.fused_experts` that it has, the usual one first.
    """
    return CheckSpec(
        name=name,
        summary=summary,
        sizes=("m", "hidden", "intermediate"),
        params=(
            Param("entry", entries[0], "the engine's layer with its loader, or its functions alone", entries),
            Param("m", 16, "tokens", label="m"),
            Param("hidden", 256, "width of a token", label="h"),
            Param("intermediate", 128, "width between the two products", label="i"),
            Param("experts", 8, "experts", label="e"),
            Param("top_k", 2, "experts per token", label="top"),
            Param("load", "random", "how tokens spread over experts", ("random", "skewed", "one"), label="load-"),
            Param(
                "held",
                "all",
                "experts held here: all, or those of one of two ranks, placed as the engine does",
                ("all", "linear", "round_robin"),
                label="held-",
            ),
        ),
    )


class FusedExpertsCheck(Check):
    """A check of one engine names it as :attr:`engine` and has a spec and the name of the kernel."""

    kernel = "fused_moe_kernel"
    late_inputs = ("x", "logits")

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if not 1 <= params["top_k"] <= params["experts"] <= MOST_EXPERTS:
            found = f"{params['top_k']} and {params['experts']}"
            return f"needs 1 <= top_k <= experts <= {MOST_EXPERTS}, not {found}"
        if params["held"] == "round_robin" and params["entry"] != "functions":
            return "held round_robin goes with entry functions: a layer such as Mixtral's places neighbours on a rank"
        if params["held"] != "all" and params["experts"] < RANKS:
            return f"experts of {RANKS} ranks are at least {RANKS}, not {params['experts']}"
        if data != "exact":
            return None
        if params["top_k"] > 2:
            return "exact data takes top_k 1 or 2: some engines round after each row that they add"
        if max(params["hidden"], params["intermediate"]) > MOST_EXACT:
            return f"exact data takes hidden and intermediate up to {MOST_EXACT}: more could round"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        hidden, inner, count = case["hidden"], case["intermediate"], case["experts"]
        shapes = {"x": (case["m"], hidden), "up": (count, 2 * inner, hidden), "down": (count, hidden, inner)}
        if case.data == "exact":
            made = {name: operands.signed_integers(shape, 1, 1, generator) for name, shape in shapes.items()}
            made["x"][:, 0] = ONE
            _lift(made["x"], made["up"][:, :inner])
        else:
            made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
            made["up"] *= hidden**-0.5
            made["down"] *= inner**-0.5
        made["logits"] = _logits(case, generator)
        return {name: value.to(torch.bfloat16) for name, value in made.items()}

    def reference(self, case: Case, inputs: Inputs) -> dict[str, Expected]:
        choice = chosen(case, inputs["logits"])
        dense = torch.zeros((case["m"], case["experts"]), dtype=torch.float64)
        gates = choice.gates
        error = None if gates.error is None else dense.scatter(1, choice.ids, gates.error)
        weights = type(gates)(dense.scatter(1, choice.ids, gates.value), error, gates.unit)
        return {"weights": Expected(weights, torch.float32), "y": experts_reference(case, inputs, choice)}

    def order_mismatches(
        self,
        case: Case,
        inputs: Inputs,
        outputs: Inputs,
        expected: dict[str, Expected],
        mismatches: list[Mismatch],
    ) -> tuple[list[Mismatch], str]:
        """The weights come before what is computed with them; a known fault may explain wrong outputs."""
        from gpucheck.checks.fused_faults import explanation

        ordered = sorted(mismatches, key=lambda each: each.output != "weights")
        return ordered, explanation(case, inputs, outputs, expected, [each.output for each in ordered])

    def prepare(self, case: Case, inputs: Inputs, runtime: Runtime) -> Any:
        sizes = Sizes(case["hidden"], case["intermediate"], case["experts"], case["top_k"])
        share = None if case["held"] == "all" else Share(RANKS, RANK[case["entry"]], case["held"])
        experts = by_engine(
            runtime,
            lambda engine: engine.fused_experts(
                sizes, inputs["up"], inputs["down"], share, runtime.place, len(inputs["x"]), case["entry"]
            ),
        )
        return inputs["x"], inputs["logits"], experts

    def operands(self, case: Case, prepared: Any) -> Any:
        x, logits, experts = prepared
        return {"x": x, "logits": logits, **experts.operands()}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        x, logits, experts = prepared
        with torch.no_grad():
            made = experts.forward(x, logits)
            dense = torch.zeros(logits.shape, dtype=made["weights"].dtype, device=logits.device)
            ids = made["ids"].long().clamp(0, logits.shape[1] - 1)  # ids of no expert give weights that are wrong
            return {"weights": dense.scatter(1, ids, made["weights"]), "y": made["y"]}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return (self.kernel,)

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        return (NeededLaunches((self.kernel,), 2),)

    def axes(self, case: Case, inputs: Inputs) -> dict[str, Axes]:
        ids = chosen(case, inputs["logits"]).ids
        return {
            "weights": Axes(("token", "expert"), (0, 0)),
            "y": Axes(("token", "column"), (16, 64), {"expert": ids}),
        }


def _lift(x: Tensor, gates: Tensor) -> None:
    """Gives the gates (E, I, H) a first column with which all tokens (T, H) have gates that silu does not change."""
    import math

    lowest = float((x[:, 1:] @ gates[:, :, 1:].mT).min())
    gates[:, :, 0] = 2.0 ** math.ceil(math.log2((bounds.ALL_OF_IT - lowest) / ONE))


def _logits(case: Case, generator: torch.Generator) -> Tensor:
    """(T, E): whole steps in any order, with no two alike in a row; exact data has weights of 1/k and zero."""
    shape, ids = (case["m"], case["experts"]), None
    ids = experts.choose(*shape, case["top_k"], case["load"], generator)
    if case.data == "exact":
        return torch.full(shape, OUT).scatter(1, ids, 4.0)
    scores = torch.randn(shape, generator=generator)
    ranks = scores.scatter_add(1, ids, torch.full(ids.shape, 100.0)).argsort(-1).argsort(-1)
    step = min(0.5, 16 / (1 << (shape[1] - 1).bit_length()))
    return (ranks - shape[1] // 2) * step


@dataclass(frozen=True)
class Choice:
    """The experts of each token, that of the largest weight first."""

    ids: Tensor  # (T, k)
    gates: Estimate  # (T, k)


def chosen(case: Case, logits: Tensor) -> Choice:
    """The k largest logits of each token, their weights a softmax over all experts that is renormalised."""
    wide = logits.double()
    ids = wide.sort(dim=-1, descending=True, stable=True).indices[:, : case["top_k"]]
    if case.data == "exact":
        of_all = bounds.softmax(wide, exact=True)
        return Choice(ids, bounds.Estimate(of_all.value.gather(1, ids), None, of_all.unit))
    of_all = bounds.softmax(wide)
    assert of_all.error is not None
    picked = bounds.Estimate(of_all.value.gather(1, ids), of_all.error.gather(1, ids))
    return Choice(ids, bounds.renormalised(picked))


def held_experts(case: Case) -> list[int]:
    """Ids of the experts that are held here."""
    count, rank = case["experts"], RANK[case["entry"]]
    if case["held"] == "linear":  # what does not divide goes to the first ranks
        first, left = divmod(count, RANKS)
        start = rank * first + min(rank, left)
        return list(range(start, start + first + (rank < left)))
    return list(range(rank, count, RANKS) if case["held"] == "round_robin" else range(count))


@dataclass(frozen=True)
class Change:
    """What a faulty engine computes otherwise; the default changes nothing."""

    inputs: Callable[[Inputs], Inputs] = dict
    """Inputs -> those that it in effect computes with."""
    gates: Callable[[Choice, Tensor], Tensor] = lambda choice, logits: choice.gates.value
    """The choice and logits -> the weights (T, k) that rows are multiplied with."""
    terms: tuple[int | None, int | None] = (None, None)  # of both products: how many, the first ones; None: all
    silu: Callable[[Estimate], Estimate] | None = None  # in place of silu and product
    held: tuple[int, ...] | None = None  # the experts that it computes; None: those that are held


NO_CHANGE = Change()


def experts_reference(case: Case, inputs: Inputs, choice: Choice, change: Change = NO_CHANGE) -> Expected:
    """The output, or what an engine with a fault makes of it.

    Engines differ in what they round to bf16: silu of the gate before the product, and the sum after each row of it.
    """
    bf16, k = torch.bfloat16, case["top_k"]
    given, held = change.inputs(inputs), held_experts(case) if change.held is None else change.held
    ids = torch.where(torch.isin(choice.ids, torch.tensor(held)), choice.ids, -1)
    gates = bounds.Estimate(change.gates(choice, inputs["logits"]), choice.gates.error, choice.gates.unit)
    tables = experts.tables(ids, gates.value, case["experts"])
    rows = experts.rows_of(operands.as_estimate(inputs["x"], case.data), tables, k, gather=True)
    of_rows = experts.take(gates.flat(), tables["to_flat"][: experts.served(tables)].long(), (-1, 1))
    first: dict[int, Estimate] = {}

    def product(x: Estimate, weight: Tensor, terms: int | None) -> Estimate:
        w = operands.as_estimate(weight.mT[:terms], case.data)
        part = x if terms is None else bounds.Estimate(x.value[:, :terms], _part(x.error, terms), x.unit)
        return bounds.product(part, w, operands=bf16)

    def output(between: torch.dtype | None) -> Estimate:
        def block(expert: int, x: Estimate) -> Estimate:
            if expert not in first:
                first[expert] = bounds.rounded(product(x, given["up"][expert], change.terms[0]), bf16)
            inner = change.silu(first[expert]) if change.silu else bounds.silu_and_mul(first[expert], between)
            return product(bounds.rounded(inner, bf16), given["down"][expert], change.terms[1])

        made = experts.each_expert(rows, tables, case["hidden"], block)
        made = bounds.scale(made, of_rows.value) if made.exact else bounds.times(made, of_rows)
        return experts.to_tokens(bounds.rounded(made, bf16), tables, k)

    summed = [
        each for between in (None, bf16) for each in _sums(output(between), k) if between is None or not rows.exact
    ]
    return Expected(summed[0], bf16, alternatives=tuple(summed[1:]))


def _part(error: Tensor | None, terms: int) -> Tensor | None:
    return None if error is None else error[:, :terms]


def _sums(rows: Estimate, k: int) -> list[Estimate]:
    """The rows (T, k, H) of each token added up: in fp32, and with a rounding to bf16 after each."""

    def slot(number: int) -> Estimate:
        error = None if rows.error is None else rows.error[:, number : number + 1]
        return bounds.Estimate(rows.value[:, number : number + 1], error, rows.unit)

    sums = [bounds.summed(rows, dim=1)]
    if k > 2:
        total = slot(0)
        for number in range(1, k):
            both = [total, slot(number)]
            errors = [each.error for each in both if each.error is not None]
            pair = bounds.Estimate(
                torch.cat([each.value for each in both], 1), torch.cat(errors, 1) if errors else None, rows.unit
            )
            added = bounds.summed(pair, dim=1)
            total = bounds.rounded(added, torch.bfloat16) if number < k - 1 else added
            total = total.reshaped(len(rows.value), 1, -1)
        sums.append(total.reshaped(len(rows.value), -1))
    return sums
