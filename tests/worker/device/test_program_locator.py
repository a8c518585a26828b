"""The search for the programs that write elements, with interpreted kernels of which that is known."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from gpucheck.triton_hooks import interpreter  # noqa: E402

interpreter.install()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from gpucheck.worker.device import program_locator  # noqa: E402

FILLS = (0xFF, 0x00)


@triton.jit
def _tiles(x_ptr, y_ptr, rows, columns, SKIP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < columns)[None, :] & (tl.program_id(0) != SKIP)
    place = row[:, None] * columns + column[None, :]
    tl.store(y_ptr + place, tl.load(x_ptr + place, mask) + 1, mask)


@triton.jit
def _backwards(y_ptr, BLOCK: tl.constexpr):
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK
    tl.store(y_ptr + first + tl.arange(0, BLOCK), first)


def filled(fill: int, *shape: int) -> Any:
    return torch.full(shape, fill - 256 * (fill > 127), dtype=torch.int8).repeat_interleave(4, -1).view(torch.int32)


def tiled(skip: int = -1) -> Callable[[int], dict[str, Any]]:
    def run(fill: int) -> dict[str, Any]:
        x, y = torch.arange(30 * 20, dtype=torch.int32).reshape(30, 20), filled(fill, 30, 20)
        _tiles[(lambda _: (4, 3))](x, y, 30, 20, SKIP=skip, BLOCK=8)
        return {"y": y}

    return run


def test_the_program_of_each_element_in_a_grid_of_two_axes() -> None:
    elements = [("y", (row, column)) for row in (0, 7, 8, 29) for column in (0, 8, 19)]
    found = program_locator.find(tiled(), elements, FILLS, cpu=True)
    assert found == [f"_tiles ({row // 8}, {column // 8}) of (4, 3)" for _, (row, column) in elements]


def test_what_no_program_writes() -> None:
    elements = [("y", (9, 3)), ("y", (17, 3))]
    found = program_locator.find(tiled(skip=1), elements, FILLS, cpu=True)
    assert found == [program_locator.NOBODY, "_tiles (2, 0) of (4, 3)"]


def test_a_kernel_that_counts_programs_is_not_misled_in_the_interpreter() -> None:
    def run(fill: int) -> dict[str, Any]:
        y = filled(fill, 32)
        _backwards[(4,)](y, BLOCK=8)
        return {"y": y}

    elements = [("y", (place,)) for place in (0, 9, 31)]
    assert program_locator.find(run, elements, FILLS, cpu=True) == [f"_backwards ({n}) of (4)" for n in (3, 2, 0)]
    assert program_locator.find(run, elements, FILLS, cpu=False)[0] in ("", "_backwards"), "on a GPU nothing is claimed"


def test_what_the_host_writes_is_no_programs_doing() -> None:
    def run(fill: int) -> dict[str, Any]:
        outputs = tiled()(fill)
        outputs["y"][4, 4] = -7
        return outputs

    assert program_locator.find(run, [("y", (4, 4))], FILLS, cpu=True) == [program_locator.ELSEWHERE]


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_locator, "SECONDS", 0.0)
    assert program_locator.find(tiled(), [("y", (0, 0))], FILLS, cpu=True) == [""]


def test_launches_afterwards_are_whole() -> None:
    program_locator.find(tiled(), [("y", (0, 0))], FILLS, cpu=True)
    assert torch.equal(tiled()(0)["y"], torch.arange(1, 601, dtype=torch.int32).reshape(30, 20))
