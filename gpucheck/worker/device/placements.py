"""What ties a process to its GPU, or to all of them, for each row of :mod:`gpucheck.model.placement_table`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from gpucheck.host.visible_gpus import VARIABLE, alone

if TYPE_CHECKING:
    import torch


class Binding(ABC):
    """Ties a process to a GPU."""

    @abstractmethod
    def enter(self, index: int) -> torch.device:
        """Returns the device that the tensors of local rank ``index`` live on.

        A process of one rank calls it once, before it has touched CUDA; one that holds all GPUs calls it for each, in
        the thread that works there or whenever its turn comes.
        """

    def settle(self, device: torch.device) -> None:  # noqa: B027 - most leave a further thread as it starts
        """Does for a further thread of the process what :meth:`enter` did for the first."""


class Pinned(Binding):
    """``torch.cuda.set_device(local_rank)``, as servers do it."""

    def enter(self, index: int) -> torch.device:
        import torch

        device = torch.device("cuda", index)
        self.settle(device)
        return device

    def settle(self, device: torch.device) -> None:
        import torch

        torch.cuda.set_device(device)


class Visible(Pinned):
    """``CUDA_VISIBLE_DEVICES`` holds the rank's GPU alone: no other device exists for the process."""

    def enter(self, index: int) -> torch.device:
        os.environ[VARIABLE] = alone(os.environ.get(VARIABLE), index)
        return super().enter(0)


class Unpinned(Binding):
    """Tensors on the rank's GPU, the current device left at 0, and nothing ever on device 0."""

    def enter(self, index: int) -> torch.device:
        import torch

        return torch.device("cuda", index)


class Context0(Unpinned):
    """As unpinned, but device 0 has a live context, since a tensor lies there."""

    def enter(self, index: int) -> torch.device:
        import torch

        self.held = torch.ones(1024, device="cuda:0")
        return super().enter(index)


class Peer(Context0):
    """As context0, and device 0 may access the rank's GPU: torch enables that at the first copy between them."""

    def enter(self, index: int) -> torch.device:
        device = super().enter(index)
        self.copied = self.held.to(device)
        return device


class Cpu(Binding):
    """No GPU: the Triton interpreter runs the kernels."""

    def enter(self, index: int) -> torch.device:
        import torch

        device = torch.device("cpu")
        self.settle(device)
        return device

    def settle(self, device: torch.device) -> None:
        import torch

        torch.set_num_threads(1)


BINDINGS: dict[str, type[Binding]] = {
    "pinned": Pinned,
    "visible": Visible,
    "unpinned": Unpinned,
    "context0": Context0,
    "peer": Peer,
    "threads": Pinned,
    "threads-unpinned": Unpinned,
    "sequential": Pinned,
    "sequential-unpinned": Unpinned,
    "cpu": Cpu,
}
"""One for each placement."""
