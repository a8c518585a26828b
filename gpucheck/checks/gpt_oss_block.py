"""The expert block of gpt-oss as serving software computes it: what the checks of each caller share.

Inputs, reference and names of places are the same whoever calls the library; a check adds the caller's own loading of
the weights and its own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.block_parts import Part, parts
from gpucheck.checks.matmul import SWIGLU
from gpucheck.checks.on_use import bounds, experts, operands, torch
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.record import Mismatch, NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.verify.bounds import Estimate

VOTES = 8  # coordinates of a token that an expert's router logit is the sum of
UNIT = 0.25  # of activations: what an expert is given; router weights are half


def spec(name: str, summary: str, further: tuple[Param, ...] = ()) -> CheckSpec:
    """The parameters of the block, for the check of one caller, which may have further ones."""
    return CheckSpec(
        name=name,
        summary=summary,
        data_kinds=("normal",),
        sizes=("m", "hidden", "intermediate"),
        params=(
            Param("m", 16, "tokens", label="m"),
            Param("hidden", 256, "width of a token", label="h"),
            Param("intermediate", 256, "width between the two products", label="i"),
            Param("experts", 32, "experts", label="e"),
            Param("top_k", 4, "experts per token", label="top"),
            *further,
        ),
    )


class GptOssBlock(Check):
    """Router, choice of experts, both products and the sum; mxfp4 weights, biases and a clamped swiglu."""

    late_inputs = ("x",)
    stored_biases: ClassVar[bool] = False
    """Whether the caller keeps biases in bf16, as checkpoints do; then they are such values."""

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["hidden"] % 32 or params["intermediate"] % 32:
            return "hidden and intermediate must be multiples of 32, the block of mxfp4"
        if not 1 <= params["top_k"] <= params["experts"]:
            return f"needs 1 <= top_k <= experts, not {params['top_k']} and {params['experts']}"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        """Router logits are sums of a few small multiples of UNIT / 2: exact in bf16 whatever the order of summing."""
        hidden, inner, count = case["hidden"], case["intermediate"], case["experts"]
        x = operands.signed_integers((case["m"], hidden), 1, 8, generator) * UNIT
        votes = torch.rand((count, hidden), generator=generator).topk(VOTES, -1).indices
        signs = operands.signed_integers(tuple(votes.shape), 1, 1, generator)
        router = torch.zeros((count, hidden)).scatter(1, votes, signs / 2)
        made = {"x": x.to(torch.bfloat16), "router": router.to(torch.bfloat16)}
        for name, terms, columns in (("up", hidden, 2 * inner), ("down", inner, hidden)):
            weight = operands.weights("mxfp4", (count, terms, columns), "normal", generator)
            made |= {name: weight["w"], f"{name}_scale": weight["w_scale"]}
            bias = torch.randn((count, columns), generator=generator)
            made[f"{name}_bias"] = bias.to(torch.bfloat16).float() if self.stored_biases else bias
        return made

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        return block_reference(case, inputs)

    def order_mismatches(
        self,
        case: Case,
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        expected: dict[str, Expected],
        mismatches: list[Mismatch],
    ) -> tuple[list[Mismatch], str]:
        """The router's logits come before what is computed by them; a known fault of callers may explain that."""
        from gpucheck.checks.caller_faults import explanation

        ordered = sorted(mismatches, key=lambda each: list(expected).index(each.output))
        if not ordered:
            return ordered, ""
        first = ordered[0].output
        if first == "router_logits":
            return ordered, "first wrong: the router"
        return ordered, explanation(case, inputs, outputs[first], expected[first], self.part(case, first))

    def part(self, case: Case, output: str) -> Part | None:
        """What the rank of an output holds of the block, where several share it; None: all."""
        return None

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["matmul"]

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        """Both products; which kernels choose the experts and add up rows is transformers' own affair."""
        return (NeededLaunches(self.kernels(case, runtime), 2),)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        from gpucheck.checks.routing import reference_topk

        _, ids = reference_topk(inputs["x"].double() @ inputs["router"].double().T, case["top_k"])
        return {
            "router_logits": Axes(("token", "expert"), (0, 0)),
            "y": Axes(("token", "column"), (128, 128), {"expert": ids}),
        }


def another_checkpoint(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with other weights, scales, biases and router, none of which gives a result of the first ones."""
    signs = {name: inputs[name] ^ 0x88 for name in ("up", "down")}  # of both values in a byte
    doubled = {name: inputs[name].clamp(max=253) + 1 for name in ("up_scale", "down_scale")}
    negated = {name: -inputs[name] for name in ("up_bias", "down_bias", "router")}
    return {**inputs, **signs, **doubled, **negated}


@dataclass(frozen=True)
class Change:
    """What a faulty caller computes otherwise; the default changes nothing."""

    inputs: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    """Inputs of the block -> those that it in effect computes with."""
    scores: Callable[[Tensor], Tensor] = lambda logits: logits
    """Logits (T, E) -> what it chooses experts by, and weighs them."""
    rows: Callable[[Tensor], Tensor] = lambda tokens: tokens
    """The token of each row, which lie in the order of experts -> the tokens that it takes for them."""
    activation: Callable[[Estimate, Tensor, float, float], Estimate] = lambda up, bias, alpha, limit: bounds.swiglu(
        bounds.add(up, bias), alpha, limit
    )
    """The first product (R, 2I), its bias (2I,), alpha and limit -> what the second product is given (R, I)."""
    alpha: float = SWIGLU[0]
    limit: float = SWIGLU[1]  # of the clamp
    gates: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda gates, logits, ids: gates
    """Weights (T, k) of the chosen experts, logits (T, E) and the experts' ids (T, k) -> the weights that it takes."""
    part: Callable[[Part], Part] = lambda part: part
    """What a rank should hold of the block -> what it holds."""


NO_CHANGE = Change()


def block_reference(
    case: Case, inputs: dict[str, Tensor], change: Change = NO_CHANGE, part: Part | None = None
) -> dict[str, Expected]:
    """The router's logits and the output of the block, or what a caller with a fault makes of it.

    Args:
        inputs: of a case; where they hold ``router_logits`` (T, E), these are what the experts are chosen by.
        part: what this rank holds, where several share the block: the output is then its share of the sum.
    """
    from gpucheck.checks.routing import reference_topk
    from gpucheck.checks.sharded.shares import local_ids

    k = case["top_k"]
    part = change.part(part or parts({**case.params, "tp": 1, "ep": 1})[0])
    given = inputs.get("router_logits")
    logits = inputs["x"].double() @ inputs["router"].double().T if given is None else given.double()
    chosen, ids = reference_topk(change.scores(logits), k)
    held = part.held(change.inputs(inputs))
    gates = bounds.rounded(bounds.softmax(chosen), torch.bfloat16)
    gates = replace(gates, value=change.gates(gates.value, logits, ids))
    tables = experts.tables(local_ids(ids, part.experts), gates.value, len(held["up"]))

    def weight(name: str, expert: int) -> Estimate:
        decoded = operands.decode_weight("mxfp4", held[name][expert], held[f"{name}_scale"][expert])
        return operands.as_estimate(decoded, "normal")

    def block(expert: int, rows: Estimate) -> Estimate:
        up, bias = bounds.product(rows, weight("up", expert)), held["up_bias"][expert].double()
        inner = bounds.rounded(change.activation(up, bias, change.alpha, change.limit), torch.bfloat16)
        return bounds.add(bounds.product(inner, weight("down", expert)), held["down_bias"][expert].double())

    tokens = change.rows(experts.tokens_of(tables, k))
    x = experts.take(operands.as_estimate(inputs["x"], "normal"), tokens)
    rows = experts.each_expert(x, tables, case["hidden"], block)
    order = tables["to_flat"][: experts.served(tables)].long()
    rows = bounds.times(rows, experts.take(gates.flat(), order, (-1, 1)))
    rounded, whole = (  # a product split along its terms leaves its rows unrounded, and transformers lets it be
        bounds.summed(experts.to_tokens(each, tables, k), dim=1)
        for each in (bounds.rounded(rows, torch.bfloat16), rows)
    )
    return {
        "router_logits": Expected(bounds.Estimate(logits, None, UNIT / 2), torch.bfloat16),
        "y": Expected(rounded, torch.bfloat16, alternatives=(whole,)),
    }
