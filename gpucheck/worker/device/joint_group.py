"""The process group that the children of all ranks form: entered before a joint case, made anew after a failure."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from gpucheck.worker.collective_journal import CollectiveJournal
from gpucheck.worker.rank_store import connected

SETTINGS = {
    "NCCL_DEBUG": "WARN",  # its own words on an error, which a finding shows
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",  # needs a fabric manager that lets it, and is no part of what is checked
}
"""Environment variables of a process that runs joint cases, where nobody has set them."""
AGREEMENT = "agreement on further passes"
_LONGEST = 2.0  # deadlines after which the group itself gives up: the supervisor is sooner


class JointGroup:
    """The membership of this process in the group of all ranks; there is one at most."""

    def __init__(self, journal: Path, *, one_node: bool, in_step: bool = False) -> None:
        """Puts the observer around ``torch.distributed``.

        Args:
            journal: file for the notes of it.
            one_node: all ranks are on this node.
            in_step: ranks wait for each other before and after each call.
        """
        from gpucheck.worker.device.collective_observer import CollectiveObserver

        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self.journal = CollectiveJournal(journal)
        self._one_node = one_node
        self._name = ""
        self._agreements = 0
        CollectiveObserver(self.journal, in_step=in_step).install()

    def enter(self, name: str, device: torch.device, seconds: float) -> None:
        """Makes this process a member of the group called ``name``, the only one that it is ever in, with all ranks.

        Another group takes another process: nothing can be waited for in a group that has lost a rank.

        Args:
            seconds: that the case may take.
        """
        from torch import distributed

        self.journal.begin()
        if self._name == name:
            return
        assert not self._name, f"this process is in group {self._name} and cannot go on in {name}"
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        longest = timedelta(seconds=_LONGEST * seconds)
        begun = self.journal.enter("init_process_group", "init_process_group", range(ranks), "start")
        if device.type == "cpu":
            if self._one_node:  # the name of a machine may well lead nowhere
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            options: dict[str, Any] = {"backend": "gloo"}
        else:
            options = {"backend": "nccl", "device_id": device}
        store = connected(name, longest)
        distributed.init_process_group(store=store, rank=rank, world_size=ranks, timeout=longest, **options)
        self.journal.leave(begun)
        self._name, self._store, self._ranks = name, store, ranks

    def largest(self, value: float) -> float:
        """The largest of what all ranks say; all of them ask as often, and wait for each other."""
        self._agreements += 1
        key = f"largest/{self._agreements}"
        asked = self.journal.enter(AGREEMENT, AGREEMENT, range(self._ranks), AGREEMENT)
        self._store.set(f"{key}/{os.environ['RANK']}", repr(value))
        values = [float(self._store.get(f"{key}/{rank}")) for rank in range(self._ranks)]
        self.journal.leave(asked)
        return max(values)

    def meet(self, device: torch.device) -> None:
        """Waits until all ranks have come."""
        from torch import distributed

        distributed.barrier(device_ids=[device.index] if device.type == "cuda" else None)

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes for something; all ranks ask as often, and wait for each other."""
        self._agreements += 1
        key = f"agreement/{self._agreements}"
        asked = self.journal.enter(AGREEMENT, AGREEMENT, range(self._ranks), AGREEMENT)
        if wish:
            self._store.add(f"{key}/wishes", 1)
        if self._store.add(f"{key}/asked", 1) == self._ranks:
            self._store.set(f"{key}/answer", str(self._store.add(f"{key}/wishes", 0)))
        wishes = int(self._store.get(f"{key}/answer"))
        self.journal.leave(asked)
        return wishes > 0
