"""Autotuned sums of two vectors: configurations that write parts, that add in place, and ones that are alike."""

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

SIZE, PART = 256, 64


def tuned(kernel: Any, *starts: int, size: int, **options: Any) -> Any:
    """A kernel that is tuned over where it starts."""
    configs = [
        triton.Config({"START": start, "SIZE": size}, num_warps=4 + 4 * (n % 2)) for n, start in enumerate(starts)
    ]
    return triton.autotune(configs=configs, key=[], **options)(triton.jit(kernel))


def add_rest(x, y, out, START: tl.constexpr, SIZE: tl.constexpr):
    at = START + tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at) + tl.load(y + at), mask=at < 256)


def add_in_place(x, y, out, START: tl.constexpr, SIZE: tl.constexpr):
    at = START + tl.arange(0, SIZE)
    tl.store(out + at, tl.load(out + at) + tl.load(y + at))


KERNELS = {
    "part": tuned(add_rest, PART, 0, size=SIZE),  # the first, which is chosen on the CPU, leaves out the first part
    "in_place": tuned(add_in_place, 0, 0, size=SIZE),
    "alike": tuned(add_rest, 0, 0, size=SIZE, warmup=1, rep=1),  # measured by a clock that it brings along
}


class Autotuned(Check):
    """x + y."""

    needs_library = False
    late_inputs = ("x", "y")
    usual = tuple({"form": form} for form in KERNELS)
    spec = CheckSpec(
        name="autotuned",
        summary="sums of two vectors by autotuned kernels",
        params=(Param("form", "part", "which kernel", tuple(KERNELS)),),
        data_kinds=("exact",),
    )

    def inputs(self, case: Case, generator: Generator) -> dict[str, Tensor]:
        return {name: torch.randint(1, 100, (SIZE,), generator=generator).float() for name in ("x", "y")}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        return {"out": Expected(Estimate(inputs["x"].double() + inputs["y"].double(), None), torch.float32)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        x, y = prepared["x"], prepared["y"]
        out = x.clone() if case["form"] == "in_place" else torch.empty_like(x)
        KERNELS[case["form"]][(1,)](x, y, out)
        return {"out": out}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ("add_in_place" if case["form"] == "in_place" else "add_rest",)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {"out": Axes(("value",), (PART,))}
