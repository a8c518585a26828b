"""Rows picked from a tensor by number, with an offset in 32 bits: beyond 2^31 elements it reaches before the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gpucheck.checks.base import Check, Runtime
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Axes, Expected

STRIDE, WIDTH = 1 << 20, 64
LIMIT = 2**31 // STRIDE  # the first row that offsets of 32 bits do not reach


@triton.jit
def pick_rows(rows, numbers, out, stride, WIDTH: tl.constexpr):
    entry = tl.program_id(0)
    at = tl.load(numbers + entry) * stride + tl.arange(0, WIDTH)
    tl.store(out + entry * WIDTH + tl.arange(0, WIDTH), tl.load(rows + at))


class FarPages(Check):
    """The rows that a list names, of a tensor with as much memory again before it, so that nothing crashes."""

    needs_library = False
    late_inputs = ()
    usual = ({"last": LIMIT - 1}, {"last": LIMIT + 3})
    spec = CheckSpec(
        name="far_pages",
        summary="rows of a tensor beyond 2^31 elements",
        params=(Param("last", LIMIT + 3, "the furthest row", label="last"),),
        data_kinds=("exact",),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        return None if 8 <= params["last"] < 2 * LIMIT else "last must be 8 to twice the limit"

    def inputs(self, case: Case, generator: Generator) -> dict[str, Tensor]:
        last = case["last"]
        numbers = torch.tensor([0, last // 3, last - 6, last - 1, last], dtype=torch.int32)
        rows = torch.randint(1, 120, (len(numbers), WIDTH), generator=generator).to(torch.int8)
        return {"numbers": numbers, "rows": rows}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        return {"out": Expected(Estimate(inputs["rows"].double(), None), torch.int8)}

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        before = 2**31 + STRIDE
        whole = torch.zeros(before + (case["last"] + 1) * STRIDE, dtype=torch.int8, device=runtime.device)
        rows = whole[before:].view(-1, STRIDE)
        rows[inputs["numbers"].long(), :WIDTH] = inputs["rows"]
        return rows, inputs["numbers"]

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        rows, numbers = prepared
        out = torch.empty((len(numbers), WIDTH), dtype=torch.int8, device=rows.device)
        pick_rows[(len(numbers),)](rows, numbers, out, rows.stride(0), WIDTH=WIDTH)
        return {"out": out}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ("pick_rows",)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {"out": Axes(("entry", "byte"), (0, 0))}
