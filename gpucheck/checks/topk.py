"""``topk``: the library's own top-k with softmax, columns put in ascending order of expert id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.routing import LOGITS, gates_are_exact, make_logits, reference_topk, validate_logits
from gpucheck.model.case import Case, CheckSpec
from gpucheck.model.record import Cost
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class TopK(Check):
    """Logits -> the k largest per row and the softmax over them."""

    late_inputs = ("logits",)

    spec = CheckSpec(name="topk", summary="the library's top-k and softmax over the chosen", params=LOGITS)

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        return validate_logits(params)

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        return {"logits": make_logits(case, generator)}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        import torch

        from gpucheck.checks.data import DTYPES
        from gpucheck.verify import bounds

        chosen, ids = reference_topk(inputs["logits"], case["top_k"])
        gates = bounds.softmax(chosen)
        if gates_are_exact(case):
            gates = bounds.Estimate(gates.value, None)
        return {
            "experts": Expected(bounds.Estimate(ids.double(), None), torch.int32),
            "values": Expected(gates, DTYPES[case["dtype"]]),
        }

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        top = runtime.library.topk(prepared["logits"], case["top_k"])
        return {"experts": top.experts, "values": top.values}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["topk"]

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost:
        from gpucheck.checks import cost

        return cost.topk(case, inputs)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {name: Axes(("token", "slot"), (0, 0)) for name in ("experts", "values")}
