"""The process group that the children of all ranks form: entered before a joint case, made anew after a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from gpucheck.model.errors import Inapplicable
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
        self._agreements: Agreements | None = None
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
        backend = "gloo" if device.type == "cpu" else "nccl"
        if not (distributed.is_available() and getattr(distributed, f"is_{backend}_available")()):
            raise Inapplicable(f"this torch was built without {backend}, by which ranks run together")
        begun = self.journal.enter("init_process_group", "init_process_group", range(ranks), "start")
        if device.type == "cpu" and self._one_node:  # the name of a machine may well lead nowhere
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        options: dict[str, Any] = {} if device.type == "cpu" else {"device_id": device}
        store = connected(name, longest)
        distributed.init_process_group(
            store=store, rank=rank, world_size=ranks, timeout=longest, backend=backend, **options
        )
        self.journal.leave(begun)
        self._name, self._agreements = name, Agreements(store, rank, ranks, self.journal)

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes for one more pass; all ranks ask as often, and wait for each other."""
        assert self._agreements is not None, "before there is a group nobody can be asked"
        return self._agreements.agree(wish)

    def largest(self, value: float) -> float:
        """The largest of what all ranks say; likewise."""
        assert self._agreements is not None, "before there is a group nobody can be asked"
        return self._agreements.largest(value)

    def meet(self, device: torch.device) -> None:
        """Waits until all ranks have come."""
        from torch import distributed

        distributed.barrier(device_ids=[device.index] if device.type == "cuda" else None)


class Agreements:
    """What the ranks of a group tell each other through its store, at no cost to what connects their devices."""

    def __init__(self, store: Any, rank: int, ranks: int, journal: CollectiveJournal) -> None:
        self._store, self._rank, self._ranks, self._journal = store, rank, ranks, journal
        self._asked = 0

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes for something."""
        with self._place() as key:
            if wish:
                self._store.add(f"{key}/wishes", 1)
            if self._store.add(f"{key}/asked", 1) == self._ranks:
                self._store.set(f"{key}/answer", str(self._store.add(f"{key}/wishes", 0)))
            return int(self._store.get(f"{key}/answer")) > 0

    def largest(self, value: float) -> float:
        """The largest of what the ranks say."""
        with self._place() as key:
            self._store.set(f"{key}/{self._rank}", repr(value))
            return max(float(self._store.get(f"{key}/{rank}")) for rank in range(self._ranks))

    @contextmanager
    def _place(self) -> Iterator[str]:
        """A part of the store that is asked in once; inside, the rank waits for all others, as its journal shows."""
        self._asked += 1
        begun = self._journal.enter(AGREEMENT, AGREEMENT, range(self._ranks), AGREEMENT)
        yield f"agreement/{self._asked}"
        self._journal.leave(begun)
