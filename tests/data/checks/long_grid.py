"""Rows doubled by a kernel whose rows lie along one axis of the grid or the other: the second one ends at 65,535."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gpucheck.checks.base import Check, Runtime
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Axes, Expected

WIDTH = 4


@triton.jit
def double_rows(x, y, WIDTH: tl.constexpr):
    row = tl.program_id(0) + tl.program_id(1) + tl.program_id(2)
    at = row.to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    tl.store(y + at, 2.0 * tl.load(x + at))


class LongGrid(Check):
    """2 x."""

    needs_library = False
    late_inputs = ("x",)
    usual = tuple({"axis": axis, "rows": rows} for axis, rows in ((0, 65_536), (1, 65_535), (1, 65_536), (2, 65_536)))
    spec = CheckSpec(
        name="long_grid",
        summary="rows along an axis of the grid",
        params=(Param("axis", 0, "of the grid", label="axis"), Param("rows", 65_536, "blocks on it", label="r")),
        data_kinds=("exact",),
    )

    def inputs(self, case: Case, generator: Generator) -> dict[str, Tensor]:
        return {"x": torch.randint(1, 9, (case["rows"], WIDTH), generator=generator).float()}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        return {"y": Expected(Estimate(2 * inputs["x"].double(), None), torch.float32)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        x = prepared["x"]
        y = torch.empty_like(x)
        double_rows[lambda meta: (1,) * case["axis"] + (len(x),)](x, y, WIDTH=WIDTH)
        return {"y": y}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ("double_rows",)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {"y": Axes(("row", "column"), (0, 0))}
