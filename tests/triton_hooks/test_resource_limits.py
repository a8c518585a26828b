"""Kernels too large for their GPU are refused before anything is loaded, with what they ask for and why."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from triton.compiler.compiler import CompiledKernel
from triton.runtime.errors import OutOfResources

from gpucheck.triton_hooks import resource_limits
from gpucheck.triton_hooks.resource_limits import GridLimit, ResourceLimit, explained
from tests.tools.compile.conftest import shipped

pytest.importorskip("torch")

SCRIPT = """
from gpucheck.checks.no_launch import stand_in
from gpucheck.triton_hooks.targets import TARGETS
from gpucheck.triton_hooks import resource_limits
from tests.tools.compile.planted import FLOATS, HALVES, hungry, sound
from triton.compiler.compiler import CompiledKernel

loaded = []
CompiledKernel._init_handles = lambda kernel: loaded.append(kernel.name)
with stand_in(TARGETS["sm_90"]):
    resource_limits.install()
    def launch(kernel, *args, **options):
        try:
            kernel[(1,)](*args, **options)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    for _ in range(2):
        launch(hungry, HALVES, HALVES, FLOATS, 128, 128, 512, 4, num_warps=16, num_stages=4)
    launch(sound, FLOATS, L=64, num_warps=64)
    print(loaded)
    hungry.warmup(HALVES, HALVES, FLOATS, 128, 128, 512, 4, num_warps=16, num_stages=4, grid=(1,))
    sound.warmup(FLOATS, L=64, grid=(1,))._init_handles()
    print(loaded)
"""


def test_an_impossible_launch_is_refused_with_need_limit_and_configuration(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=shipped(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    memory = (
        "ResourceLimit: hungry needs 1,049,600 bytes of shared memory, a block may use 232,448; "
        "compiled with M=128, N=128, K=512, 16 warps, 4 stages"
    )
    threads = "ResourceLimit: sound needs 2,048 threads, a block may use 1,024; compiled with L=64, 64 warps, 3 stages"
    assert done.stdout.splitlines() == [memory, memory, threads, "[]", "['sound']"]


@pytest.fixture
def kernel() -> Any:
    """A kernel as Triton keeps it, not loaded yet, that asks for too much tensor memory."""
    source = SimpleNamespace(fn=SimpleNamespace(arg_names=["x", "BLOCK"]), constants={(1,): 64})
    metadata = SimpleNamespace(shared=0, num_warps=4, num_stages=2, warp_size=32)
    return SimpleNamespace(module=None, name="_k", src=source, metadata=metadata)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The checked loading, around one that refuses; the device has plenty of shared memory."""

    def refuse(kernel: Any) -> None:
        if kernel.module is None:
            raise OutOfResources(600, 512, "tensor memory")

    properties = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": 232_448})
    active = SimpleNamespace(utils=properties, get_current_device=lambda: 0)
    monkeypatch.setattr(resource_limits, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(CompiledKernel, "_init_handles", refuse)
    resource_limits.install()
    return CompiledKernel._init_handles


def test_what_triton_refuses_itself_gets_the_same_words(load: Any, kernel: Any) -> None:
    with pytest.raises(OutOfResources) as refused:
        load(kernel)
    assert (
        str(refused.value)
        == "_k needs 600 of tensor memory, the GPU has 512; compiled with BLOCK=64, 4 warps, 2 stages"
    )


def test_the_error_survives_being_copied() -> None:
    error = ResourceLimit(3, 2, "threads", "words")
    for other in (copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (type(other), str(other), other.required, other.limit) == (ResourceLimit, "words", 3, 2)


def test_a_loaded_kernel_costs_less_than_a_microsecond(load: Any, kernel: Any, slowness: Callable[[], float]) -> None:
    kernel.module = object()
    best = min(timeit.repeat(lambda: load(kernel), number=100, repeat=100)) / 100
    assert best < 1e-6 * slowness(), f"{best * 1e6:.2f} us"


INVALID = RuntimeError("Triton Error [CUDA]: invalid argument")


def test_an_invalid_argument_is_told_with_the_grid_that_explains_it() -> None:
    told = explained(INVALID, "_k", (1, 65_536))
    assert str(told) == "_k was launched with 65,536 blocks on axis 1, at most 65,535; its grid is 1 x 65,536"
    assert isinstance(told, GridLimit) and not isinstance(told, OutOfResources), "the autotuner would pass it over"


@pytest.mark.parametrize(
    ("error", "blocks"),
    [
        (INVALID, (1, 65_535)),
        (INVALID, ()),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), (1, 65_536)),
        (OutOfResources(2, 1, "invalid"), (1, 65_536)),
    ],
)
def test_what_the_grid_does_not_explain_stays_as_it_is(error: Exception, blocks: tuple[int, ...]) -> None:
    assert explained(error, "_k", blocks) is None
