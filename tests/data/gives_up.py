"""A check whose second rank ends in several ways, each after it has printed why."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Generator, Tensor

from gpucheck.checks.base import Check, Runtime
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Axes, Expected

REASON = "the routing table of layer 3 was never loaded"
WAYS = ("none", "exits", "floods", "stdout", "sys_exit", "chained", "binary", "judge")


@triton.jit
def doubled_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + place, 2 * tl.load(x_ptr + place, mask=place < count, other=0.0), mask=place < count)


class GivesUp(Check):
    needs_library = False
    late_inputs = ("x",)
    usual = tuple({"way": way} for way in WAYS[:-1])
    spec = CheckSpec(
        name="gives_up", summary="ends", params=(Param("way", "none", "how", WAYS),), data_kinds=("exact",)
    )

    def inputs(self, case: Case, generator: Generator) -> dict[str, Tensor]:
        return {"x": torch.randint(-8, 9, (64,), generator=generator).float()}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        return {"y": Expected(Estimate(2 * inputs["x"].double(), None), torch.float32)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        if os.environ["RANK"] == "1":
            give_up(case["way"])
        y = torch.empty_like(prepared["x"])
        doubled_kernel[(1,)](prepared["x"], y, 64, BLOCK=64)
        return {"y": y}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ("doubled_kernel",)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        if os.environ["RANK"] == "1" and case["way"] == "judge" and "GPUCHECK_DEVICE" not in os.environ:
            print(REASON, file=sys.stderr, flush=True)  # in the process that judges
            os._exit(9)
        return {"y": Axes(("value",), (64,))}


def give_up(way: str) -> None:
    if way in ("exits", "floods"):
        print(REASON, file=sys.stderr, flush=True)
        for number in range(5000 * (way == "floods")):
            print(f"stopping worker {number}", file=sys.stderr)
        os._exit(7)
    if way == "stdout":
        print(REASON)
        os._exit(3)
    if way == "sys_exit":
        sys.exit(REASON)
    if way == "chained":
        try:
            raise KeyError(REASON)
        except KeyError as error:
            raise RuntimeError("the worker failed") from error
    if way == "binary":
        raise RuntimeError(f"{REASON} \udcff\x00\x1b[31m")
