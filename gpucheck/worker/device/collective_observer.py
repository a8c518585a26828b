"""Writes each collective call of a process into its journal: who made it, with what, and whether it was left."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from gpucheck.worker.collective_journal import CollectiveJournal

COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "broadcast",
    "reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "gather",
    "scatter",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "monitored_barrier",
    "new_group",
)
"""All ranks of a group make these calls, in the same order."""
PAIRWISE = {"send": "dst", "isend": "dst", "recv": "src", "irecv": "src"}
"""A sender and a receiver make these calls: the argument that names the other one."""
ANY_SIZE = ("all_to_all", "all_to_all_single", "gather", "scatter", "all_gather", "reduce_scatter", "barrier")
"""Calls in which ranks may rightly give lists or sizes of their own."""


class CollectiveObserver:
    """Stands around the functions of ``torch.distributed`` from its installation on."""

    def __init__(self, journal: CollectiveJournal, *, in_step: bool = False) -> None:
        self.journal, self.in_step = journal, in_step
        self._inner = threading.local()  # functions of torch.distributed call each other

    def install(self) -> None:
        """Puts itself around the functions, once in the life of a process."""
        for name in (*COLLECTIVES, *PAIRWISE):
            if (function := getattr(distributed, name, None)) is None:
                continue
            watched = self._watched(name, function)
            for module in (distributed, distributed.distributed_c10d):
                setattr(module, name, watched)

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inner, "deep", False):
                return function(*args, **kwargs)
            given = signature.bind_partial(*args, **kwargs).arguments
            number = self._enter(name, given)
            self._inner.deep = True
            try:
                meet = self.in_step and number is not None and name in COLLECTIVES
                self._step(given, meet)
                result = function(*args, **kwargs)
                if meet and isinstance(result, distributed.Work):
                    result.wait()
                self._step(given, meet)
            finally:
                self._inner.deep = False
            if number is None:
                return result
            if isinstance(result, distributed.Work):
                self.journal.returned(number)
                return _WatchedWork(result, self.journal, number)
            self.journal.leave(number)
            return result

        return call

    def _step(self, given: dict[str, Any], meet: bool) -> None:
        """Waits for the device, and where all ranks of a group call alike for all of them."""
        if self.in_step and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        if meet:
            distributed.barrier(given.get("group"))

    def _enter(self, name: str, given: dict[str, Any]) -> int | None:
        """Notes a call; None for one that this rank has no part in, or that it makes before there is a group."""
        group = None if name == "new_group" else given.get("group")
        if group is distributed.GroupMember.NON_GROUP_MEMBER or not distributed.is_initialized():
            return None
        members = distributed.get_process_group_ranks(group)
        channel = group.group_name if group is not None else "all"
        if name in PAIRWISE:
            other = given.get(PAIRWISE[name])
            if other is None:
                return None
            me = distributed.get_rank()
            members = [me, other] if PAIRWISE[name] == "dst" else [other, me]
            channel = f"{channel} {members[0]}>{members[1]}"
        words = [name.removeprefix("i") if name in PAIRWISE else name, *_told(name, given)]
        if name in PAIRWISE:
            words[0] = "send"  # one signature for both ends
        return self.journal.enter(name, " ".join(words), members, channel)


class _WatchedWork:
    """What an asynchronous call returned; waiting for it is noted."""

    def __init__(self, work: Any, journal: CollectiveJournal, number: int) -> None:
        self._work, self._journal, self._number = work, journal, number

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Waits as the work itself does."""
        self._journal.waits(self._number)
        result = self._work.wait(*args, **kwargs)
        self._journal.leave(self._number)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _told(name: str, given: dict[str, Any]) -> list[str]:
    """What must agree on all ranks of a call."""
    words = []
    if name == "new_group":
        ranks = given.get("ranks")
        return ["of all" if ranks is None else f"of {sorted(ranks)}"]
    tensors = list(_tensors(given.values()))
    if tensors:
        words.append(str(tensors[0].dtype).removeprefix("torch."))
        if name not in ANY_SIZE:
            words += [f"x{tensor.numel()}" for tensor in tensors[: 2 if name.endswith("_tensor") else 1]]
    if "op" in given:
        words.append(str(given["op"]).rpartition(".")[2].lower())
    elif name in ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor"):
        words.append("sum")
    for root in ("src", "dst"):
        if name not in PAIRWISE and given.get(root) is not None:
            words.append(f"{root} {given[root]}")
    return words


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
