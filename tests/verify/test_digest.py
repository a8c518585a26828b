from __future__ import annotations

import pytest
import torch

from gpucheck.verify import digest

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.uint8, torch.float8_e4m3fn]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_counts(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    before = digest.whole(tensor)
    assert digest.whole(tensor.clone()) == before
    for place in ((0, 0), (2, 3)):
        other = tensor.clone()
        bits(other)[place] ^= 1
        assert digest.whole(other) != before


def test_shape_dtype_and_order_count() -> None:
    zeros = torch.zeros(4, dtype=torch.float32)
    same_bytes = [zeros, zeros.reshape(2, 2), zeros.reshape(4, 1), zeros.view(torch.int32), torch.zeros(8).bfloat16()]
    assert len({digest.whole(tensor) for tensor in same_bytes}) == 5
    a, b = torch.ones(2), torch.zeros(2)
    assert digest.whole(a, b) != digest.whole(b, a)
    assert digest.whole(torch.tensor([0.0])) != digest.whole(torch.tensor([-0.0]))


def test_strides_do_not_count() -> None:
    tensor = torch.randn(5, 7)
    assert digest.whole(tensor.T.contiguous().T) == digest.whole(tensor)
    assert digest.tiles(tensor.T.contiguous().T, (2, 2)) == digest.tiles(tensor, (2, 2))


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (4, 0)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...]) -> None:
    assert len(digest.whole(torch.zeros(shape))) == 32
    assert digest.tiles(torch.zeros(shape)) == []


def test_tiles_run_row_by_row_and_show_where_a_bit_differs() -> None:
    tensor = torch.randn(300, 260)
    before = digest.tiles(tensor)
    assert len(before) == 3 * 3
    for place, tile in (((0, 0), 0), ((0, 259), 2), ((128, 127), 3), ((299, 128), 7)):
        other = tensor.clone()
        bits(other)[place] ^= 1
        assert [i for i, (a, b) in enumerate(zip(before, digest.tiles(other), strict=True)) if a != b] == [tile]


def test_leading_axes_are_rows() -> None:
    tensor = torch.randn(3, 100, 64)
    assert digest.tiles(tensor) == digest.tiles(tensor.reshape(300, 64))


def test_the_number_of_tiles_is_limited() -> None:
    tensor = torch.zeros(64, 4096)
    tiles = digest.tiles(tensor, (1, 8))
    assert 0 < len(tiles) <= digest.MOST_TILES


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool, torch.float64, torch.complex64, torch.complex128])
def test_elements_that_differ_in_any_bit_are_counted_once(dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 4).to(dtype)
    other = tensor.clone()
    assert digest.differing(tensor, other) == 0
    other[0, 1] = other[2, 3] = 1
    assert digest.differing(tensor, other) == digest.differing(tensor.mT, other.mT) == 2
    assert digest.differing(other, tensor[:1, :1].expand_as(other)) == 2


def test_nan_equals_itself_and_the_zeros_differ() -> None:
    values = torch.tensor([torch.nan, 0.0, 1.0])
    assert digest.differing(values, torch.tensor([torch.nan, -0.0, 1.0])) == 1
    assert digest.differing(torch.zeros(0), torch.zeros(0)) == 0
