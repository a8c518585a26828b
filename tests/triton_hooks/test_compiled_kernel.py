from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.triton_hooks import compiled_kernel
from gpucheck.triton_hooks.compiled_kernel import Excess, Limits, excess, grid_excess
from gpucheck.triton_hooks.targets import TARGETS

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


def test_registers_are_those_of_all_threads() -> None:
    eight = metadata(num_warps=8)
    assert excess(eight, HOPPER, registers=255) is None
    assert excess(metadata(num_warps=16), HOPPER, registers=128) is None
    assert excess(metadata(num_warps=16), HOPPER, registers=136) == Excess("registers", 69_632, 65_536)
    wide = metadata(num_warps=8, warp_size=64)
    assert excess(wide, TARGETS["gfx942"].limits, registers=256) is None
    assert excess(wide, TARGETS["gfx942"].limits, registers=264) == Excess("registers", 135_168, 131_072)
    assert excess(metadata(num_warps=16), Limits(1), registers=255) is None  # a driver does not say how many there are


def test_tensor_memory_counts_where_the_gpu_has_some() -> None:
    blackwell = TARGETS["sm_100"].limits
    assert excess(metadata(tmem_size=512), blackwell) is None
    assert excess(metadata(tmem_size=513), blackwell) == Excess("columns of tensor memory", 513, 512)
    assert excess(metadata(tmem_size=513), HOPPER) is None
    assert excess(metadata(tmem_size=None), blackwell) is None


def test_metadata_that_says_little_is_no_excess() -> None:
    assert excess(SimpleNamespace(), Limits(1)) is None


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ((2**31 - 1,), ""),
        ((2**31,), "2,147,483,648 blocks on axis 0, at most 2,147,483,647"),
        ((1, 65_535, 65_535), "4,294,836,225 blocks in all, at most 2,147,483,647"),
        ((7, 65_536), "65,536 blocks on axis 1, at most 65,535"),
        ((7, 1, 65_536), "65,536 blocks on axis 2, at most 65,535"),
        ((), ""),
        ((0, 1, 1), ""),
    ],
)
def test_each_axis_of_a_grid_ends_somewhere(blocks: tuple[int, ...], words: str) -> None:
    assert str(grid_excess(blocks, HOPPER) or "") == words


def test_blocks_of_a_cluster_count_each() -> None:
    assert str(grid_excess((2**30,), HOPPER, metadata(num_ctas=2))).startswith(
        "1,073,741,824 blocks on axis 0, at most"
    )


def test_amd_gpus_count_threads_along_the_first_axis() -> None:
    limits = TARGETS["gfx942"].limits
    wide = metadata(num_warps=16, warp_size=64)
    assert grid_excess((4_194_303,), limits, wide) is None
    found = grid_excess((4_194_304,), limits, wide)
    assert str(found) == "4,194,304 blocks of 1,024 threads on axis 0, at most 4,194,303"
    assert grid_excess((4_194_304,), HOPPER, metadata(num_warps=32)) is None


@pytest.mark.parametrize("home", ["triton.runtime.cache", "triton.compiler.compiler"])
def test_triton_hashes_itself_before_processes_are_forked(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    """Releases differ in where the function is that keeps the hash."""
    pytest.importorskip("triton")
    hashed: list[str] = []
    for name in ("triton.runtime.cache", "triton.compiler.compiler"):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "triton_key", lambda: hashed.append(home), raising=False)
        if name != home:
            monkeypatch.delattr(module, "triton_key")
    compiled_kernel.hash_triton()
    assert hashed == [home]
