"""What only the ``matmul_ogs`` generation without a routing module does."""

from __future__ import annotations

import pytest
import torch

from gpucheck.library.adapters.base import Adapter, Routing, Weight
from tests.library.adapters.conftest import decode_mxfp4


@pytest.fixture(scope="module", autouse=True)
def generation(adapter: Adapter) -> None:
    if adapter.generation != "v3.6":
        pytest.skip(f"this copy is of generation {adapter.generation}")


def swizzled(adapter: Adapter, k: int, n: int) -> tuple[Weight, torch.Tensor]:
    codes = torch.randint(0, 256, (k // 2, n), dtype=torch.uint8)
    scales = torch.randint(126, 129, (-(-k // 32), n), dtype=torch.uint8)
    # The library reads up to two blocks past the scales where their number is not a multiple of 4.
    weight = adapter.weight("mxfp4", codes, scales, "default", padded_with_zeros)
    return weight, decode_mxfp4(codes, scales)


def padded_with_zeros(tensor: torch.Tensor) -> torch.Tensor:
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.zeros(extent + 4096, dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


@pytest.mark.parametrize(("k", "n"), [(96, 48), (160, 100), (288, 320), (64, 16), (2880, 40)])
def test_default_mxfp4_of_any_shape(adapter: Adapter, k: int, n: int) -> None:
    """On Hopper the library pads its swizzled layouts; the adapter must not refuse what it then computes."""
    weight, w = swizzled(adapter, k, n)
    x = torch.randint(-4, 5, (5, k)).double()
    assert torch.equal(adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32).double(), x @ w)


def test_index_objects_are_not_swapped(adapter: Adapter) -> None:
    """Rows of unequal experts tell the permutation from its inverse."""
    to_flat = torch.tensor([2, 0, 3, 4, 1, 5], dtype=torch.int32)
    to_sorted = torch.argsort(to_flat.long()).int()
    assert not torch.equal(to_flat, to_sorted)
    routing = Routing(torch.tensor([1, 3, 2], dtype=torch.int32), to_flat, to_sorted, torch.ones(6), 3, 2)
    data, gather, scatter = adapter.from_tables(routing)
    assert torch.equal(gather.src_indx, to_flat) and torch.equal(gather.dst_indx, to_sorted)
    assert torch.equal(scatter.src_indx, to_sorted) and torch.equal(scatter.dst_indx, to_flat)
    assert data.expt_data.slice_offs.tolist() == [0, 1, 4, 6]
