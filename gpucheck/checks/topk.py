"""``topk``: the library's own top-k with softmax, columns put in ascending order of expert id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.on_use import bounds, extremes, operands, torch
from gpucheck.checks.routing import LOGITS, make_logits, open_rows, reference_gates, validate_logits
from gpucheck.model.case import DATA_KINDS, Case, CheckSpec
from gpucheck.model.record import Cost
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor


class TopK(Check):
    """Logits -> the k largest per row and the softmax over them."""

    late_inputs = ("logits",)

    spec = CheckSpec(
        name="topk", summary="the library's top-k and softmax over the chosen", params=LOGITS, data_kinds=DATA_KINDS
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        return validate_logits(params, data)

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        return {"logits": make_logits(case, generator)}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        ids, gates = reference_gates(case, inputs["logits"])
        of_nan, without = open_rows(inputs["logits"], ids)
        experts, dtype = bounds.Estimate(ids.double(), None), operands.DTYPES[case["dtype"]]
        if case.data != "wide":
            return {"experts": Expected(experts, torch.int32), "values": Expected(gates, dtype)}
        gates, also = extremes.rows_of_nan(gates, without)
        unknown = of_nan[:, None].expand(ids.shape)
        return {
            "experts": Expected(experts, torch.int32, unknown=unknown),
            "values": Expected(gates, dtype, unknown=unknown, also=also),
            "valid": Expected(bounds.Estimate(torch.ones(len(ids), dtype=torch.float64), None), torch.uint8),
        }

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        top = runtime.library.topk(prepared["logits"], case["top_k"], over_all=case["softmax"] == "all")
        outputs = {"experts": top.experts, "values": top.values}
        if case.data == "wide":
            outputs["valid"] = _valid(top.experts, case["experts"])
        return outputs

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["topk"]

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost:
        """Logits, values in their dtype and int32 ids."""
        logits = inputs["logits"]
        chosen = case["m"] * case["top_k"]
        return Cost(0.0, float(operands.size(logits) + chosen * (logits.element_size() + 4)))

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        slots = Axes(("token", "slot"), (0, 0))
        axes = {"experts": slots, "values": slots}
        return {**axes, "valid": Axes(("token",), (0,))} if case.data == "wide" else axes


def _valid(ids: Tensor, experts: int) -> Tensor:
    """1 for each row of ids (T, k) that names different experts, all of which exist: all that is asked beside NaN."""
    ordered = ids.sort(1).values
    known = ((ids >= 0) & (ids < experts)).all(1)
    return (known & (ordered[:, 1:] != ordered[:, :-1]).all(1)).to(torch.uint8)
