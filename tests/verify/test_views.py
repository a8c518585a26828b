"""Views on their way to another device."""

from __future__ import annotations

import pytest
import torch

from gpucheck.verify.views import ALIGNMENT, extent, to_device

BASE = torch.arange(3 * 700.0).view(3, 700)


@pytest.mark.parametrize(
    "view",
    [BASE, BASE.mT, BASE[1:, 3:20], BASE[:, ::7].mT, BASE[2, 5:6].expand(4, 9), BASE[0].unfold(0, 5, 2), BASE[1, 1]],
    ids=["dense", "transposed", "slice", "every seventh", "expanded", "windows", "scalar"],
)
def test_another_device_sees_the_strides_and_the_distance_from_an_aligned_address(view: torch.Tensor) -> None:
    moved = to_device(view, torch.device("meta"))
    assert (moved.shape, moved.stride(), moved.dtype) == (view.shape, view.stride(), view.dtype)
    assert moved.storage_offset() == view.storage_offset() % ALIGNMENT
    held = moved.storage_offset() + extent(view.shape, view.stride())
    assert moved.untyped_storage().nbytes() == 4 * held, "no more moves than what the view lies in"


def test_the_same_device_keeps_the_very_tensor() -> None:
    assert to_device(BASE.mT, torch.device("cpu")).data_ptr() == BASE.data_ptr()
    assert to_device(torch.empty(0, 4), torch.device("meta")).shape == (0, 4)
