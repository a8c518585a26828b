"""Placements: how a rank's process is tied to its GPU."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Placement(ABC):
    """Ties a fresh process, which has not touched CUDA yet, to the GPU of its rank."""

    @abstractmethod
    def enter(self, local_rank: int) -> torch.device:
        """Returns the device the rank's tensors live on."""


class Pinned(Placement):
    """``torch.cuda.set_device(local_rank)``, as servers do it."""

    def enter(self, local_rank: int) -> torch.device:
        import torch

        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)


class Visible(Placement):
    """``CUDA_VISIBLE_DEVICES`` holds the rank's GPU alone: no other device exists for the process."""

    def enter(self, local_rank: int) -> torch.device:
        import torch

        listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        os.environ["CUDA_VISIBLE_DEVICES"] = listed[local_rank] if listed else str(local_rank)
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)


class Unpinned(Placement):
    """Tensors on the rank's GPU, the current device left at 0, and nothing ever on device 0."""

    def enter(self, local_rank: int) -> torch.device:
        import torch

        return torch.device("cuda", local_rank)


class Context0(Unpinned):
    """As unpinned, but device 0 has a live context, since a tensor lies there."""

    def enter(self, local_rank: int) -> torch.device:
        import torch

        self.held = torch.ones(1024, device="cuda:0")
        return super().enter(local_rank)


class Peer(Context0):
    """As context0, and device 0 may access the rank's GPU: torch enables that at the first copy between them."""

    def enter(self, local_rank: int) -> torch.device:
        device = super().enter(local_rank)
        self.copied = self.held.to(device)
        return device


class Cpu(Placement):
    """No GPU: the Triton interpreter runs the kernels."""

    def enter(self, local_rank: int) -> torch.device:
        import torch

        torch.set_num_threads(1)
        return torch.device("cpu")


PLACEMENTS: dict[str, type[Placement]] = {
    "pinned": Pinned,
    "visible": Visible,
    "unpinned": Unpinned,
    "context0": Context0,
    "peer": Peer,
    "cpu": Cpu,
}
