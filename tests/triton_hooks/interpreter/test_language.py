"""Kernels as the interpreter rewrites them: they see what compiled ones see."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


def kernels(step: int) -> tuple[Any, Any]:
    """A kernel and the device function that it calls, which use a number and each other from around them."""

    @triton.jit
    def plus(value, extra: tl.constexpr):  # type: ignore[no-untyped-def]
        return value + step + extra

    @triton.jit
    def kernel(y, N: tl.constexpr):  # type: ignore[no-untyped-def]
        index = tl.arange(0, N)
        tl.store(y + index, plus(index, N))

    return kernel, plus


def test_a_kernel_defined_inside_a_function_keeps_the_functions_variables() -> None:
    for step in (3, 50):
        kernel, _ = kernels(step)
        y = torch.zeros(8, dtype=torch.int32)
        kernel[(1,)](y, N=8)
        assert y.tolist() == [index + step + 8 for index in range(8)]


@triton.jit
def dependent(out, WAIT: tl.constexpr):
    if WAIT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(out, 7)


def test_a_kernel_may_wait_for_the_one_before_it() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    dependent[(1,)](out, WAIT=True)
    assert out.tolist() == [7]
