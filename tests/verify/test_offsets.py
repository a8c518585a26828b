"""What lies behind an offset that 32 bits do not hold: told where nothing before it is wrong, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from gpucheck.model.record import LargeTensor
from gpucheck.verify import offsets
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Axes, Expected
from gpucheck.verify.judge import judge

if TYPE_CHECKING:
    from torch import Tensor

STRIDE = 1 << 20
CACHE = LargeTensor("cache_ptr", "int8", 1, [2054, STRIDE], [STRIDE, 1])
HALVES = LargeTensor("x_ptr", "bfloat16", 2, [40_000, 40_000], [40_000, 1])
PAGES = torch.tensor([0, 1, 1026, 2046, 2052, 2053, 2047, 2048], dtype=torch.int32)


def wrong(rows: Any, count: int = 8, width: int = 4) -> Tensor:
    mask = torch.zeros((count, width), dtype=torch.bool)
    mask[rows] = True
    return mask


def hint(mask: Tensor, large: Any = (CACHE,), **inputs: Tensor) -> str:
    return offsets.hint(mask, 1, Axes(("entry", "byte"), (0, 0)), inputs, large)


def test_rows_whose_page_lies_behind_the_limit_are_told_with_the_first() -> None:
    assert hint(wrong([4, 5, 7]), table=PAGES) == (
        "offset arithmetic wraps at 2^31: wrong are entries 4, 5, 7, just those whose table times the stride 1,048,576 "
        "of cache_ptr, int8 of shape (2054, 1048576) passes 2^31 elements; the first has the offset 2,151,677,952; "
        "make the index 64 bits wide before it is multiplied"
    )
    assert "entries 4, 7, all among those whose table" in hint(wrong([4, 7]), table=PAGES), "5 may be right by chance"


@pytest.mark.parametrize("rows", [[3], [4, 5, 6, 7], [0, 4, 5, 7], [], list(range(8))])
def test_a_wrong_row_before_the_limit_is_explained_by_something_else(rows: list[int]) -> None:
    assert hint(wrong(rows), table=PAGES) == ""


def test_without_a_large_tensor_or_a_table_that_reaches_into_it_nothing_is_said() -> None:
    assert hint(wrong([4, 5, 7]), large=(), table=PAGES) == ""
    assert hint(wrong([4, 5, 7])) == ""
    assert hint(wrong([4, 5, 7]), table=PAGES.float()) == ""
    assert hint(wrong([4, 5, 7]), table=PAGES * 4) == "", "no numbers of its pages"
    assert hint(wrong([4, 5, 7]), table=PAGES[:7]) == ""
    assert hint(wrong([4, 5, 7]), table=PAGES.clamp_min(2048)) == "", "all lie behind it"


def test_of_a_request_with_several_pages_the_furthest_counts() -> None:
    table = torch.stack([PAGES.flip(0), torch.zeros_like(PAGES)], 1)
    assert "entries 0, 2, 3, just those" in hint(wrong([0, 2, 3]), table=table)


def test_rows_of_a_large_tensor_are_found_without_a_table() -> None:
    """Rows 26,844 and beyond lie behind 2^30 elements of 2 bytes."""
    mask = torch.zeros(40_000, dtype=torch.bool)
    mask[26_844:] = True
    axes = Axes(("row",), (0,))
    told = offsets.hint(mask, 4, axes, {}, [HALVES])
    assert "rows 26844, 26845, " in told and "just those whose index times the stride 40,000" in told
    assert "passes 2^31 bytes; the first has the offset 1,073,760,000" in told
    mask[26_843] = True
    assert offsets.hint(mask, 4, axes, {}, [HALVES]) == ""
    mask = torch.zeros(70_000, dtype=torch.bool)
    mask[53_688:] = True
    longer = LargeTensor("x_ptr", "bfloat16", 2, [70_000, 40_000], [40_000, 1])
    assert "passes 2^31 elements; the first has the offset 2,147,520,000" in offsets.hint(mask, 4, axes, {}, [longer])


def test_columns_count_where_their_stride_is_the_long_one() -> None:
    turned = LargeTensor("w", "int8", 1, [STRIDE, 2054], [1, STRIDE])
    mask = torch.zeros((3, 2054), dtype=torch.bool)
    mask[:, 2048:] = True
    assert "bytes 2048, 2049, " in hint(mask, large=[turned])


def test_groups_of_rows_have_the_page_of_their_group() -> None:
    owners = {"request": torch.arange(24)[:, None] // 3}
    mask = wrong([12, 13, 14, 15, 16, 17, 21, 22, 23], count=24)
    told = offsets.hint(mask, 1, Axes(("token", "byte"), (0, 0), owners), {"table": PAGES}, [CACHE])
    assert "tokens 12, 13, 14, 15, 16, 17, ..., just those" in told


def test_a_large_output_is_wrong_behind_the_limit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "LIMIT", 64)  # as an output of 4 GiB would be
    told = hint(wrong(slice(16, None), count=20), large=())
    assert told == (
        "offset arithmetic wraps at 2^31: every wrong element lies behind 2^31 elements, none before; the first has "
        "the offset 64; make the index 64 bits wide before it is multiplied"
    )
    halves = offsets.hint(wrong(slice(8, None), count=20), 2, Axes(("row", "column"), (0, 0)), {}, [])
    assert "lies behind 2^31 bytes, none before; the first has the offset 32 " in halves
    assert hint(wrong(slice(15, None), count=20), large=()) == ""
    few = torch.zeros((40, 4), dtype=torch.bool)
    few[39, 3] = True
    assert hint(few, large=()) == "", "one element far behind is no sign of it"
    assert hint(wrong(slice(14, None), count=16), large=()) == "", "the output ends before it"


def test_mismatches_carry_the_hint() -> None:
    right = torch.arange(32.0).reshape(8, 4) + 1
    output = right.clone()
    output[[4, 5, 7]] = 0
    expected = {"y": Expected(Estimate(right.double(), None), torch.float32)}
    axes = {"y": Axes(("entry", "column"), (0, 0))}
    found = judge({"y": output}, expected, axes).mismatches
    for large, said in (([CACHE], True), ([], False)):
        (mismatch,) = offsets.with_hints(found, {"y": output}, expected, axes, {"table": PAGES}, large)
        assert mismatch.wraps.startswith("offset arithmetic wraps at 2^31") is said
        assert mismatch.first == [4, 0]


@pytest.mark.parametrize(
    ("right", "got", "bits"),
    [
        (torch.arange(1, 9) * 2**30, (torch.arange(1, 9) * 2**30).to(torch.int32).long(), 32),
        (torch.arange(200, 400, 20), torch.arange(200, 400, 20).to(torch.uint8).long(), 8),
        (torch.arange(30_000, 40_000, 999), torch.arange(30_000, 40_000, 999).to(torch.int16).long(), 16),
        (torch.arange(8), torch.arange(8) + 256, None),
        (torch.arange(8) + 1, torch.arange(8) * 0, None),
        (torch.arange(300), torch.arange(300) % 256, 8),
        (torch.arange(600), torch.arange(600) - 512 * (torch.arange(600) >= 512), None),  # 256 to 511 are right
    ],
)
def test_integers_that_fewer_bits_could_not_hold_are_told(right: Tensor, got: Tensor, bits: int | None) -> None:
    expected = {"y": Expected(Estimate(right.double(), None), torch.int64)}
    found = judge({"y": got}, expected, {}).mismatches
    (mismatch,) = offsets.with_hints(found, {"y": got}, expected, {}, {}, [])
    said = f"every wrong element is the right one modulo 2^{bits}: a number of {bits} bits has overflowed"
    assert mismatch.wraps == (said if bits else "")
