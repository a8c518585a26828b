"""``softmax``: a row softmax with a Triton kernel of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import OPERANDS, Check, Runtime
from gpucheck.checks.on_use import bounds, extremes, operands, torch, wide
from gpucheck.model.case import DATA_KINDS, Case, CheckSpec, Param
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

DEVIATION = 4.0  # of normal logits
FAR = 256  # exact logits: the others lie so far, or a multiple, below the largest of their row: their exp is zero
MOST_TIES = 16  # exact logits that are the largest of their row, a power of two
BLOCK_ELEMENTS = 4096  # of a tile
MOST_COLUMNS = 1024  # of a tile
MOST_ROWS = 32  # of a tile


class Softmax(Check):
    """Logits -> weights that sum to one in each row; a row of nothing but -inf gives zeros."""

    needs_library = False
    late_inputs = ("x",)

    spec = CheckSpec(
        name="softmax",
        summary="softmax of rows (own Triton kernel)",
        data_kinds=DATA_KINDS,
        sizes=("m", "n"),
        params=(
            Param("dtype", "fp32", "of logits and weights", OPERANDS),
            Param("m", 32, "rows", label="m"),
            Param("n", 32, "columns", label="n"),
            Param("masked", False, "some logits are -inf: single ones, the first or last of a row, whole rows"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        return "wide data is not masked" if data == "wide" and params["masked"] else None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        if case.data == "wide":
            return {"x": wide.values((case["m"], case["n"]), operands.DTYPES[case["dtype"]], generator)}
        x = make_logits(case["m"], case["n"], case.data, generator, masked=case["masked"])
        return {"x": x.to(operands.DTYPES[case["dtype"]])}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        x = inputs["x"]
        if case.data == "wide":  # Inf less Inf, and whatever is divided by a sum with NaN in it, is NaN
            whole = (torch.isnan(x) | (x == torch.inf)).any(1)
            y = bounds.softmax(x.double().masked_fill(whole[:, None], 0.0), parts=parts(*x.shape))
            y, also = extremes.rows_of_nan(y, whole)
            return {"y": Expected(y, x.dtype, also=also)}
        y = bounds.softmax(x.double(), parts=parts(*x.shape), exact=case.data == "exact")
        return {"y": Expected(y, x.dtype)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        from gpucheck.checks.kernels.softmax_kernel import row_softmax

        return {"y": row_softmax(prepared["x"], *block_shape(case["m"], case["n"]))}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ("_row_softmax",)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {"y": Axes(("row", "column"), block_shape(case["m"], case["n"]))}


def block_shape(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a tile, powers of two."""
    wide = min(MOST_COLUMNS, max(16, 1 << (columns - 1).bit_length()))
    return min(MOST_ROWS, BLOCK_ELEMENTS // wide, max(4, 1 << (rows - 1).bit_length())), wide


def parts(rows: int, columns: int) -> int:
    """How many tiles a row is taken in, one after the other."""
    return -(-columns // block_shape(rows, columns)[1])


def make_logits(rows: int, columns: int, data: str, generator: torch.Generator, *, masked: bool) -> Tensor:
    """Logits (rows, columns) float32 that bf16 holds where they are exact.

    Of exact ones 1, 2, 4, ... MOST_TIES are the largest of their row and the others weigh nothing: each weight is zero
    or a negative power of two.
    """
    hidden = _hidden(rows, columns, generator) if masked else torch.zeros((rows, columns), dtype=torch.bool)
    if data == "normal":
        x = torch.randn((rows, columns), generator=generator) * DEVIATION
        return x.masked_fill(hidden, -torch.inf)
    most = (~hidden).sum(1, keepdim=True).clamp(1, MOST_TIES)
    drawn = torch.rand((rows, 1), generator=generator) * (1 + most.double().log2().floor())
    order = torch.rand((rows, columns), generator=generator).masked_fill(hidden, 2.0)
    top = torch.randint(-8, 9, (rows, 1), generator=generator) * 16.0
    below = FAR * torch.randint(1, 9, (rows, columns), generator=generator)
    return torch.where(_first(order, 2 ** drawn.long()), top, top - below).masked_fill(hidden, -torch.inf)


def _first(order: Tensor, counts: Tensor) -> Tensor:
    """Which elements of each row (rows, columns) are its ``counts`` (rows, 1) smallest.

    Sorting whole rows takes twenty times as long; it decides where elements are equal.
    """
    smallest = order.topk(min(MOST_TIES, order.shape[1]), 1, largest=False).values
    found = order <= smallest.gather(1, counts - 1)
    return found if bool((found.sum(1, keepdim=True) == counts).all()) else order.argsort(1).argsort(1) < counts


def _hidden(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) bool, what is -inf: each row in one of four ways drawn at random, the first row wholly."""
    way = torch.randint(4, (rows, 1), generator=generator)
    way[0] = 0
    column = torch.arange(columns)
    cut = torch.randint(columns + 1, (rows, 1), generator=generator)
    single = torch.rand((rows, columns), generator=generator) < 0.3
    return (way == 0) | ((way == 1) & single) | ((way == 2) & (column < cut)) | ((way == 3) & (column >= cut))
