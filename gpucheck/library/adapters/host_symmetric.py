"""Stands in for torch's symmetric memory where there is no GPU: memory of the host that all ranks of a node map.

Kernels of the library write into the buffers of other ranks by their addresses; in Triton's interpreter these may be
addresses of the host.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Handle:
    """The buffers of all ranks, as this process maps them."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._buffers = buffers

    def get_buffer(self, rank: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The buffer of a rank."""
        return self._buffers[rank].view(torch.uint8).view(dtype).view(*shape)

    def barrier(self, channel: int = 0) -> None:
        """Waits for all ranks: what they wrote before can then be read."""
        import torch.distributed as dist

        dist.barrier()


class HostSymmetricMemory:
    """What the library asks of ``torch.distributed._symmetric_memory``."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[str, int]] = {}  # address of a buffer -> its file and size in bytes

    def empty(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer that other processes of this machine can map."""
        folder = os.environ.get("GPUCHECK_SCRATCH")
        file, name = tempfile.mkstemp(prefix="symmetric-", dir=folder if folder and Path(folder).is_dir() else None)
        os.close(file)
        size = prod(shape) * dtype.itemsize
        os.truncate(name, size)
        made = _mapped(name, size)
        self._files[made.data_ptr()] = name, size
        return made.view(dtype).view(*shape)

    def rendezvous(self, buffer: Tensor, group: Any) -> Handle:
        """The buffers of all ranks, which make this call together."""
        import torch.distributed as dist

        name, size = self._files.pop(buffer.data_ptr())
        names: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(names, name, group)
        buffers = [buffer if other == name else _mapped(other, size) for other in names]
        dist.barrier(group)  # all have mapped it
        os.unlink(name)
        return Handle(buffers)


@contextmanager
def symmetric_memory_of_host(module: Any) -> Iterator[None]:
    """Inside, a module of the library gets its symmetric memory here."""
    genuine = module.symm_mem
    module.symm_mem = HostSymmetricMemory()
    try:
        yield
    finally:
        module.symm_mem = genuine


def _mapped(name: str, size: int) -> Tensor:
    return torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
