"""What one block may use of a GPU, and whether a compiled kernel asks for more: such a launch must fail.

Needs nothing but the metadata of the compiled kernel, so it serves before a launch on a GPU as well as without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_THREADS = 1024  # of a block, on NVIDIA GPUs and of a workgroup on AMD ones


@dataclass(frozen=True)
class Limits:
    """What one block may use."""

    shared_memory: int  # bytes
    threads: int = MOST_THREADS
    tensor_memory: int = 0  # columns; 0 where the GPU has none


@dataclass(frozen=True)
class Excess:
    """A resource of which a kernel needs more than there is."""

    resource: str  # "bytes of shared memory", "threads" or "columns of tensor memory"
    needed: int
    available: int

    def __str__(self) -> str:
        return f"needs {self.needed:,} {self.resource}, a block may use {self.available:,}"


def excess(metadata: Any, limits: Limits) -> Excess | None:
    """The first resource of which a compiled kernel needs more than a block may use; None where it fits.

    Args:
        metadata: ``metadata`` of Triton's compiled kernel (Triton 3.1 or later).
        limits: of the device; ``shared_memory`` is what torch calls ``shared_memory_per_block_optin``.
    """
    threads = (getattr(metadata, "num_warps", 0) or 0) * warp_size(metadata)
    shared, columns = getattr(metadata, "shared", 0) or 0, getattr(metadata, "tmem_size", 0) or 0
    if shared > limits.shared_memory:
        return Excess("bytes of shared memory", shared, limits.shared_memory)
    if threads > limits.threads:
        return Excess("threads", threads, limits.threads)
    if limits.tensor_memory and columns > limits.tensor_memory:
        return Excess("columns of tensor memory", columns, limits.tensor_memory)
    return None


def warp_size(metadata: Any) -> int:
    """Threads of a warp on the device that a kernel was compiled for."""
    own = getattr(metadata, "warp_size", None)
    return int(own or getattr(getattr(metadata, "target", None), "warp_size", None) or 32)
