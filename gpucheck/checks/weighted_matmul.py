"""``weighted_matmul``: explicit attention in two steps with Triton kernels of our own, softmax weights times values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import OPERANDS, Check, Runtime
from gpucheck.checks.on_use import bounds, operands, torch
from gpucheck.checks.softmax import block_shape, make_logits, parts
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.record import NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

EXACT_VALUES = 8  # values of exact data are integers up to this
MOST_BATCHES = 65535  # the largest third dimension of a grid


class WeightedMatmul(Check):
    """Scores -> softmax weights, stored -> weights times values."""

    needs_library = False
    late_inputs = ("scores", "v")

    spec = CheckSpec(
        name="weighted_matmul",
        summary="explicit attention in two steps: stored softmax weights times values (own Triton kernels)",
        sizes=("batch", "m", "k", "n"),
        params=(
            Param("dtype", "fp32", "of scores, weights, values and output", OPERANDS),
            Param("batch", 1, "heads of all sequences", label="b"),
            Param("m", 32, "queries", label="m"),
            Param("k", 32, "keys", label="k"),
            Param("n", 32, "columns of the values", label="n"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        return f"batch must be at most {MOST_BATCHES}" if params["batch"] > MOST_BATCHES else None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        batch, m, k, n = (case[name] for name in ("batch", "m", "k", "n"))
        scores = make_logits(batch * m, k, case.data, generator, masked=False).view(batch, m, k)
        if case.data == "exact":
            values = operands.signed_integers((batch, k, n), 1, EXACT_VALUES, generator)
        else:
            values = torch.randn((batch, k, n), generator=generator)
        dtype = operands.DTYPES[case["dtype"]]
        return {"scores": scores.to(dtype), "v": values.to(dtype)}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        scores, dtype = inputs["scores"], inputs["v"].dtype
        pieces = parts(case["batch"] * case["m"], case["k"])
        weights = bounds.softmax(scores.double(), parts=pieces, exact=case.data == "exact")
        stored, values = bounds.rounded(weights, dtype), operands.as_estimate(inputs["v"], case.data)
        out = bounds.product(stored, values, operands=dtype)
        return {"weights": Expected(weights, dtype), "o": Expected(out, dtype)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        from gpucheck.checks.kernels.softmax_kernel import row_softmax
        from gpucheck.checks.kernels.weighted_matmul_kernel import weighted_matmul

        scores = prepared["scores"]
        rows = scores.view(-1, scores.shape[-1])
        weights = row_softmax(rows, *block_shape(*rows.shape)).view(scores.shape)
        return {"weights": weights, "o": weighted_matmul(weights, prepared["v"], tile(case))}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ("_weighted_matmul",)

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        return (NeededLaunches(("_row_softmax",)), NeededLaunches(("_weighted_matmul",)))

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        softmax_tile = block_shape(case["batch"] * case["m"], case["k"])
        return {
            "weights": Axes(("batch", "query", "key"), (0, 0, softmax_tile[1])),
            "o": Axes(("batch", "query", "column"), (0, *tile(case))),
        }


def tile(case: Case) -> tuple[int, int]:
    """Rows and columns of a tile of the output: the powers of two that hold them all, from 16 to 64."""
    rows, columns = (min(64, max(16, 1 << (case[name] - 1).bit_length())) for name in ("m", "n"))
    return rows, columns
