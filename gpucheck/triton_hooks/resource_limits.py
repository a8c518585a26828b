"""Kernels and launches that ask for more than the GPU has, told with what they ask for.

Kernels are refused when they are loaded, which is before their first launch: Triton refuses some of them too, without a
word on the kernel and its configuration; others reach the driver. Of a grid that is too large the driver only says that
an argument is invalid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.errors import OutOfResources

from gpucheck.triton_hooks.compiled_kernel import MOST_WORK_ITEMS, Limits, constants, excess, grid_excess, in_words


class ResourceLimit(OutOfResources):
    """Triton's own error, which its autotuner takes as the sign to try another configuration, with more to say."""

    def __init__(self, required: int, limit: int, name: str, words: str = "") -> None:
        super().__init__(required, limit, name)
        self.words = words

    def __str__(self) -> str:
        return self.words

    def __reduce__(self) -> Any:
        return type(self), (self.required, self.limit, self.name, self.words)


class GridLimit(RuntimeError):
    """A launch with more blocks than the GPU allows; an error of the driver, so the autotuner does not pass it over."""


def explained(error: Exception, kernel: str, blocks: Sequence[int]) -> GridLimit | None:
    """What a launch that the driver refused asked too much of; None where its grid does not explain the error.

    Args:
        error: that the launch raised.
        kernel: its name.
        blocks: along each axis of the grid; empty where they are not known.
    """
    if "invalid" not in str(error) or isinstance(error, OutOfResources):
        return None
    work_items = MOST_WORK_ITEMS if torch.version.hip else 0
    found = grid_excess(blocks, Limits(0, work_items=work_items))
    grid = " x ".join(f"{count:,}" for count in blocks)
    return GridLimit(f"{kernel} was launched with {found}; its grid is {grid}") if found else None


def install() -> None:
    """Checks every kernel that this process loads from now on; launches of loaded ones cost nothing more."""
    load = CompiledKernel._init_handles

    def load_checked(kernel: Any) -> None:
        if kernel.module is None:
            check(kernel)
        try:
            load(kernel)
        except OutOfResources as error:
            needs = f"needs {error.required:,} of {error.name}, the GPU has {error.limit:,}"
            raise ResourceLimit(error.required, error.limit, error.name, _needs_text(kernel, needs)) from error

    CompiledKernel._init_handles = load_checked


def check(kernel: Any) -> None:
    """Raises where a compiled kernel cannot run on the current device.

    Args:
        kernel: Triton's compiled kernel (Triton 3.4 or later).

    Raises:
        ResourceLimit: it asks for more shared memory or threads than a block may use.
    """
    properties = driver.active.utils.get_device_properties(driver.active.get_current_device())
    found = excess(kernel.metadata, Limits(properties["max_shared_mem"]))
    if found:
        raise ResourceLimit(found.needed, found.available, found.resource, _needs_text(kernel, str(found)))


def _needs_text(kernel: Any, needs: str) -> str:
    metadata = kernel.metadata
    config = in_words(constants(kernel.src), metadata.num_warps, getattr(metadata, "num_stages", None))
    return f"{kernel.name} {needs}; compiled with {config}"
