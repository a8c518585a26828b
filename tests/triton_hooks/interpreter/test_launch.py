from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton

from gpucheck.triton_hooks.interpreter import launch
from gpucheck.triton_hooks.interpreter.library_repairs import SpecializedKernel

tl = triton.language


@triton.jit
def fill_kernel(out, value, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), value)


@triton.jit
def add_one(x):
    return x + 1


@triton.jit
def apply_kernel(x, out, FUNCTION: tl.constexpr, function_args, N: tl.constexpr):
    index = tl.arange(0, N)
    value = tl.load(x + index)
    if FUNCTION is not None:
        value = FUNCTION(value)
    tl.store(out + index, value * function_args[0] + function_args[1])


@triton.jit
def constants_kernel(out, N: tl.constexpr):
    block: tl.constexpr = tl.constexpr(4)
    first, second = 0, 7
    tl.store(out + tl.arange(0, 4), first.to(tl.int32) + second.to(tl.int32) + N // block + N % block)  # type: ignore[attr-defined]


@pytest.fixture
def seen() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    launches: list[tuple[str, dict[str, Any]]] = []

    def observer(name: str, arguments: dict[str, Any]) -> None:
        launches.append((name, arguments))

    launch.observers.append(observer)
    yield launches
    launch.observers.remove(observer)


def test_observers_see_name_and_arguments(seen: list[Any]) -> None:
    out = torch.zeros(4)
    fill_kernel[(1,)](out, 2.0, N=4, num_warps=4)
    assert [name for name, _ in seen] == ["fill_kernel"]
    assert next(iter(seen[0][1].values())) is out, "positional arguments have the parameters' names"
    assert seen[0][1]["N"] == 4


def test_library_tensors_reach_the_kernel_as_torch_tensors(seen: list[Any]) -> None:
    class Wrapped:
        def __init__(self, data: torch.Tensor) -> None:
            self.storage = data
            self.data = data

        def data_ptr(self) -> int:
            return self.data.data_ptr()

    out = torch.zeros(4)
    fill_kernel[(1,)](Wrapped(out), 3.0, 4)
    assert out.tolist() == [3.0] * 4
    assert next(iter(seen[0][1].values())) is out


def test_stores_past_the_end_reach_the_neighbouring_memory() -> None:
    whole = torch.zeros(8)
    fill_kernel[(1,)](whole[2:4], 1.0, 4)
    assert whole.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_specialised_kernel_binds_constants_and_tuples_and_keeps_its_name(seen: list[Any]) -> None:
    kernel = SpecializedKernel(apply_kernel, {"FUNCTION": add_one}, {"function_args": ("factor", "offset")})
    x, out = torch.arange(4.0), torch.zeros(4)
    kernel[(1,)](x, out, 2.0, 10.0, N=4)
    assert out.tolist() == [12.0, 14.0, 16.0, 18.0]
    assert seen[0][0] == kernel.__name__ == "apply_kernel"
    with pytest.raises(TypeError, match="takes 5 arguments, 6"):
        kernel[(1,)](x, out, 2.0, 10.0, 4, 5)


def test_numbers_can_be_cast_and_constants_stand_on_the_right() -> None:
    out = torch.zeros(4, dtype=torch.int32)
    constants_kernel[(1,)](out, 9)
    assert out.tolist() == [7 + 2 + 1] * 4
