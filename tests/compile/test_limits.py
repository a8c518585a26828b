from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.compile.limits import Excess, Limits, excess
from gpucheck.compile.targets import TARGETS

HOPPER = TARGETS["sm_90"].limits


def metadata(**changes: Any) -> Any:
    """As Triton's compiled kernels carry it."""
    target = SimpleNamespace(backend="cuda", arch=90, warp_size=32)
    return SimpleNamespace(**{"shared": 0, "num_warps": 4, "num_stages": 3, "target": target, **changes})


def test_the_kernel_of_the_field_report_does_not_fit() -> None:
    found = excess(metadata(shared=1_049_600), HOPPER)
    assert found == Excess("bytes of shared memory", 1_049_600, 232_448)
    assert str(found) == "needs 1,049,600 bytes of shared memory, a block may use 232,448"


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_the_last_byte_fits_and_one_more_does_not(target: Any) -> None:
    assert excess(metadata(shared=target.shared_memory), target.limits) is None
    assert excess(metadata(shared=target.shared_memory + 1), target.limits) is not None


def test_threads_are_warps_times_their_size() -> None:
    assert excess(metadata(num_warps=32), HOPPER) is None
    assert excess(metadata(num_warps=64), HOPPER) == Excess("threads", 2048, 1024)
    assert excess(metadata(num_warps=32, warp_size=64), TARGETS["gfx942"].limits) == Excess("threads", 2048, 1024)
    wide = SimpleNamespace(backend="hip", arch="gfx942", warp_size=64)
    assert excess(metadata(num_warps=16, target=wide), TARGETS["gfx942"].limits) is None
    assert excess(metadata(num_warps=32, target=wide), TARGETS["gfx942"].limits) == Excess("threads", 2048, 1024)


def test_tensor_memory_counts_where_the_gpu_has_some() -> None:
    blackwell = TARGETS["sm_100"].limits
    assert excess(metadata(tmem_size=512), blackwell) is None
    assert excess(metadata(tmem_size=513), blackwell) == Excess("columns of tensor memory", 513, 512)
    assert excess(metadata(tmem_size=513), HOPPER) is None
    assert excess(metadata(tmem_size=None), blackwell) is None


def test_metadata_that_says_little_is_no_excess() -> None:
    assert excess(SimpleNamespace(), Limits(1)) is None
