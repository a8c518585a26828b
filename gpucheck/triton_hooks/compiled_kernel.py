"""What Triton compiled or is about to: with which options, what it takes of a GPU, and whether that is too much.

Needs nothing but what Triton keeps of a kernel, so it serves on a GPU as well as without one.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MOST_THREADS = 1024  # of a block, on NVIDIA GPUs and of a workgroup on AMD ones
MOST_BLOCKS = (2**31 - 1, 65_535, 65_535)  # along each axis of a grid, on GPUs of both vendors
MOST_IN_ALL = 2**31 - 1  # Triton multiplies the axes in 32 bits and launches nothing where that is not positive
MOST_WORK_ITEMS = 2**32 - 1  # of an AMD launch along its first axis: blocks times their threads


@dataclass(frozen=True)
class Limits:
    """What one block may use."""

    shared_memory: int  # bytes
    threads: int = MOST_THREADS  # of a block
    registers: int = 0  # of 32 bits; 0 where they are not looked at
    tensor_memory: int = 0  # columns; 0 where the GPU has none
    work_items: int = 0  # of a launch along its first axis; 0 where blocks alone count


@dataclass(frozen=True)
class Excess:
    """A resource of which a kernel needs more than there is."""

    resource: str  # "bytes of shared memory", "threads", "registers" or "columns of tensor memory"
    needed: int
    available: int

    def __str__(self) -> str:
        return f"needs {self.needed:,} {self.resource}, a block may use {self.available:,}"


@dataclass(frozen=True)
class TooManyBlocks(Excess):
    """A grid that no launch may have; the resource is ``blocks on axis 1`` and the like."""

    def __str__(self) -> str:
        return f"{self.needed:,} {self.resource}, at most {self.available:,}"


def excess(metadata: Any, limits: Limits, registers: int | None = None) -> Excess | None:
    """The first resource of which a compiled kernel needs more than a block may use; None where it fits.

    Args:
        metadata: ``metadata`` of Triton's compiled kernel (Triton 3.1 or later).
        limits: of the device; ``shared_memory`` is what torch calls ``shared_memory_per_block_optin``.
        registers: of a thread; None where they are not known.
    """
    threads = (getattr(metadata, "num_warps", 0) or 0) * warp_size(metadata)
    shared, columns = getattr(metadata, "shared", 0) or 0, getattr(metadata, "tmem_size", 0) or 0
    if shared > limits.shared_memory:
        return Excess("bytes of shared memory", shared, limits.shared_memory)
    if threads > limits.threads:
        return Excess("threads", threads, limits.threads)
    needed = threads * (registers or 0)
    if limits.registers and needed > limits.registers:
        return Excess("registers", needed, limits.registers)
    if limits.tensor_memory and columns > limits.tensor_memory:
        return Excess("columns of tensor memory", columns, limits.tensor_memory)
    return None


def grid_excess(blocks: Sequence[int], limits: Limits, metadata: Any = None) -> TooManyBlocks | None:
    """The first axis of a grid on which a launch has more blocks than it may; None where it fits.

    Sources: CUDA C++ Programming Guide, technical specifications per compute capability, "maximum x-, y- or z-dimension
    of a grid of thread blocks"; for AMD GPUs what ``rocminfo`` prints as grid size, and the 32 bits in which a dispatch
    packet counts work-items.

    Args:
        blocks: along each axis, as the launch gives them.
        metadata: of the compiled kernel; None leaves out what depends on it.
    """
    clusters = getattr(metadata, "num_ctas", 1) or 1  # blocks of a cluster, all of them along the first axis
    for axis, (count, most) in enumerate(zip(blocks, MOST_BLOCKS, strict=False)):
        if count * (clusters if axis == 0 else 1) > most:
            return TooManyBlocks(f"blocks on axis {axis}", count, most // (clusters if axis == 0 else 1))
    threads = (getattr(metadata, "num_warps", 0) or 0) * warp_size(metadata)
    if limits.work_items and blocks and blocks[0] * threads > limits.work_items:
        return TooManyBlocks(f"blocks of {threads:,} threads on axis 0", blocks[0], limits.work_items // threads)
    if math.prod(blocks) > MOST_IN_ALL:
        return TooManyBlocks("blocks in all", math.prod(blocks), MOST_IN_ALL)
    return None


def warp_size(metadata: Any) -> int:
    """Threads of a warp on the device that a kernel was compiled for."""
    own = getattr(metadata, "warp_size", None)
    return int(own or getattr(getattr(metadata, "target", None), "warp_size", None) or 32)


def hash_triton() -> None:
    """Lets the imported Triton hash itself for its cache, which takes a second that forked processes then share."""
    for module in ("triton.runtime.cache", "triton.compiler.compiler"):  # where releases keep it, with its result
        with suppress(ImportError, AttributeError, OSError):  # each process meets that too
            importlib.import_module(module).triton_key()
            return


def note_making(src: Any, made: list[bool]) -> None:
    """Notes when Triton really compiles, instead of taking a kernel from its cache."""
    make = src.make_ir

    def noted(*args: Any, **kwargs: Any) -> Any:
        made.append(True)
        return make(*args, **kwargs)

    src.make_ir = noted


def constants(src: Any) -> dict[str, Any]:
    """Compile-time constants by parameter, in a form that JSON takes; those inside of tuples are left out.

    Args:
        src: ``src`` of Triton's compiled kernel, or what is to be compiled (Triton 3.1 or later).
    """
    names, found = src.fn.arg_names, {}
    for place, value in (src.constants or {}).items():
        index = place[0] if isinstance(place, tuple) and len(place) == 1 else place
        if isinstance(index, int) and index < len(names):
            found[names[index]] = _plain(value)
        elif isinstance(index, str):
            found[index] = _plain(value)
    return found


def in_words(config: Mapping[str, Any], warps: int | None, stages: int | None) -> str:
    """The numbers among the constants, warps and stages: ``BLOCK_M=128, ..., 8 warps, 3 stages``."""
    words = [f"{name}={value}" for name, value in config.items() if type(value) is int and value > 1]
    words += [f"{warps} warps"] if warps is not None else []
    words += [f"{stages} stages"] if stages is not None else []
    return ", ".join(words)


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(getattr(value, "__name__", value))
