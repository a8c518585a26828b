"""The collective calls under test, on the device: each takes what a rank sends and fills what it receives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

Call = Callable[["Exchange"], list[Any]]


@dataclass(frozen=True)
class Exchange:
    """One round of one operation on one rank."""

    sent: Tensor  # one dimension: the chunks of this rank, one after the other
    received: Tensor  # one dimension: chunks in the order of the members, or the sum
    sends: tuple[int, ...]  # elements of each chunk that it sends, by member; one for all where all get the same
    receives: tuple[int, ...]  # elements of each chunk that it receives, by member
    members: tuple[int, ...]  # ranks of the group
    rank: int
    group: Any
    reduce: str
    asynchronous: bool

    @property
    def place(self) -> int:
        """Which of the members this rank is."""
        return self.members.index(self.rank)

    def to(self, member: int) -> Tensor:
        """The chunk for a member."""
        return _part(self.sent, self.sends, member if len(self.sends) > 1 else 0)

    def of(self, member: int) -> Tensor:
        """The place for the chunk of a member."""
        return _part(self.received, self.receives, member)


def _part(tensor: Tensor, sizes: Sequence[int], number: int) -> Tensor:
    start = sum(sizes[:number])
    return tensor[start : start + sizes[number]]


def _reduction(exchange: Exchange) -> Any:
    return {"sum": distributed.ReduceOp.SUM, "max": distributed.ReduceOp.MAX}[exchange.reduce]


def all_reduce(each: Exchange) -> list[Any]:
    each.received.copy_(each.sent)
    return [distributed.all_reduce(each.received, _reduction(each), each.group, async_op=each.asynchronous)]


def all_reduce_again(each: Exchange) -> list[Any]:
    """The operation alone, in what the buffer holds by then."""
    buffer, reduction, later = each.received, _reduction(each), each.asynchronous
    return [distributed.all_reduce(buffer, reduction, each.group, async_op=later)]


def reduce_scatter(each: Exchange) -> list[Any]:
    function = distributed.reduce_scatter_tensor
    return [function(each.received, each.sent, _reduction(each), each.group, async_op=each.asynchronous)]


def all_gather(each: Exchange) -> list[Any]:
    function = distributed.all_gather_into_tensor
    return [function(each.received, each.sent, each.group, async_op=each.asynchronous)]


def all_gather_in_place(each: Exchange) -> list[Any]:
    """Gathers out of the rank's own place among those that are filled."""
    own = each.of(each.place)
    own.copy_(each.sent)
    return [distributed.all_gather_into_tensor(each.received, own, each.group, async_op=each.asynchronous)]


def all_to_all(each: Exchange) -> list[Any]:
    function, sizes = distributed.all_to_all_single, ([*each.receives], [*each.sends])
    return [function(each.received, each.sent, *sizes, each.group, async_op=each.asynchronous)]


def broadcast(each: Exchange) -> list[Any]:
    """Every member is the root once."""
    works: list[Any] = []
    for number, root in enumerate(each.members):
        if root == each.rank:
            each.of(number).copy_(each.sent)
        works.append(distributed.broadcast(each.of(number), root, each.group, async_op=each.asynchronous))
    return works


def gather(each: Exchange) -> list[Any]:
    """Every member is the root once, and gets the chunks of all."""
    works = []
    for root in each.members:
        places = [each.of(number) for number in range(len(each.members))] if root == each.rank else None
        works.append(distributed.gather(each.sent, places, root, each.group, async_op=each.asynchronous))
    return works


def scatter(each: Exchange) -> list[Any]:
    """Every member is the root once."""
    works = []
    for number, root in enumerate(each.members):
        chunks = [each.to(other) for other in range(len(each.members))] if root == each.rank else None
        works.append(distributed.scatter(each.of(number), chunks, root, each.group, async_op=each.asynchronous))
    return works


def send_recv(each: Exchange) -> list[Any]:
    """One pair after the other, each in both directions."""
    each.of(each.place).copy_(each.to(each.place))
    works: list[Any] = []
    for a, sender in enumerate(each.members):
        for b, receiver in enumerate(each.members):
            if sender == receiver or each.rank not in (sender, receiver):
                continue
            if each.rank == sender:
                send = distributed.isend if each.asynchronous else distributed.send
                works.append(send(each.to(b), receiver, each.group))
            else:
                receive = distributed.irecv if each.asynchronous else distributed.recv
                works.append(receive(each.of(a), sender, each.group))
    return works


def batched(each: Exchange) -> list[Any]:
    """All pairs at once."""
    each.of(each.place).copy_(each.to(each.place))
    calls = []
    for number, other in enumerate(each.members):
        if other != each.rank:
            calls.append(distributed.P2POp(distributed.isend, each.to(number), other, each.group))
            calls.append(distributed.P2POp(distributed.irecv, each.of(number), other, each.group))
    return list(distributed.batch_isend_irecv(calls)) if calls else []


def barrier(each: Exchange) -> list[Any]:
    """Counts the ranks that have come before the barrier, and how many had when it is behind this rank."""
    store = distributed.distributed_c10d._get_default_store()
    name = f"barrier/{each.group.group_name if each.group else 'all'}"
    name += f"/{store.add(f'{name}/of {each.rank}', 1)}"  # each barrier of a group counts anew
    store.add(name, 1)
    device = [each.received.device.index] if each.received.device.type == "cuda" else None
    work = distributed.barrier(each.group, async_op=each.asynchronous, device_ids=device)
    if work is not None:
        work.wait()
    if each.received.device.type == "cuda":
        torch.cuda.synchronize(each.received.device)
    each.received.fill_(store.add(name, 0))
    return []


CALLS: dict[str, Call] = {
    "all_reduce": all_reduce,
    "reduce_scatter": reduce_scatter,
    "all_gather": all_gather,
    "all_to_all": all_to_all,
    "broadcast": broadcast,
    "gather": gather,
    "scatter": scatter,
    "send_recv": send_recv,
    "barrier": barrier,
}


def coalesced(exchanges: Sequence[Exchange], call: Call) -> list[Any]:
    """Makes several exchanges of one group as one: NCCL then launches them together."""
    first = exchanges[0]
    with distributed.distributed_c10d._coalescing_manager(first.group, first.sent.device, async_ops=True) as works:
        for each in exchanges:
            call(each)
    return [works]
