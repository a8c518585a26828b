"""``swiglu``: the library's standalone activation kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.on_use import bounds, extremes, operands, torch, wide
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.record import Cost
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor


class Swiglu(Check):
    """Interleaved gate and linear columns -> ``g * sigmoid(alpha g) * (l + 1)``."""

    late_inputs = ("x",)

    spec = CheckSpec(
        name="swiglu",
        summary="the library's standalone swiglu",
        data_kinds=("normal", "wide"),
        params=(
            Param("dtype", "bf16", "dtype of input and output", ("bf16", "fp16", "fp32")),
            Param("m", 64, "rows", label="m"),
            Param("n", 64, "input columns", label="n"),
            Param("alpha", 1.702, "slope of the gate", label="alpha"),
            Param("limit", 7.0, "clamp of gate and linear part", label="limit"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["m"] < 1 or params["n"] < 2 or params["n"] % 2:
            return f"needs m of at least 1 and an even n of at least 2, not {params['m']} and {params['n']}"
        return "limit must be above 0" if params["limit"] <= 0 else None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        if case.data == "wide":
            return {"x": wide.values((case["m"], case["n"]), operands.DTYPES[case["dtype"]], generator)}
        x = torch.randn((case["m"], case["n"]), generator=generator) * 4
        return {"x": x.to(operands.DTYPES[case["dtype"]])}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        alpha, limit, dtype = float(case["alpha"]), float(case["limit"]), operands.DTYPES[case["dtype"]]
        if case.data == "wide":
            (y, *others), also = extremes.swiglu(inputs["x"].double(), alpha, limit)
            return {"y": Expected(y, dtype, tuple(others), also=also)}
        return {"y": Expected(bounds.swiglu(operands.as_estimate(inputs["x"], "normal"), alpha, limit), dtype)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        return {"y": runtime.library.swiglu(prepared["x"], float(case["alpha"]), float(case["limit"]))}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["swiglu"]

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost:
        return Cost(0.0, 1.5 * operands.size(inputs["x"]))

    def plain(self, case: Case, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
        return lambda: plain_swiglu(inputs["x"], float(case["alpha"]), float(case["limit"]))

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {"y": Axes(("row", "column"), (128, 128))}


def plain_swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """gpt-oss swiglu of interleaved columns (..., N) -> (..., N/2) in plain torch."""
    gate, linear = x[..., 0::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return gate * (alpha * gate).sigmoid() * (linear + 1)
