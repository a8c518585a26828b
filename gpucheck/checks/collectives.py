"""``collectives``: what ranks send each other through ``torch.distributed``, each element of it judged on each rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import JointCheck, Runtime
from gpucheck.checks.on_use import torch
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.errors import Inapplicable
from gpucheck.model.record import Cost
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.model.record import Transfer

REDUCING = ("all_reduce", "reduce_scatter")
BANDWIDTH = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")
"""Operations that use all links at once, so that their time says what these can carry."""
TO_EACH = ("reduce_scatter", "all_to_all", "scatter", "send_recv")
"""Operations in which a rank has a chunk for each other one; in the others all get the same."""
OPERATIONS = (*REDUCING, "all_gather", "all_to_all", "broadcast", "gather", "scatter", "send_recv", "barrier")
FORMS = ("call", "async", "coalesced")
GROUPS = ("all", "halves", "several", "fresh")
IN_PLACE = ("all_gather",)
COALESCED = ("all_reduce", "send_recv")
LATER = 0.01  # s by which each rank comes later than the one before it, where ranks come late
UNEVEN = 7  # different sizes of chunks, one of which is none
SEVERAL = 3  # groups of all ranks that are at work at once
ROUNDS = 2  # a second one in the same buffers: what it finds of the first one is stale
COPIES = 9  # of what a rank gives or gets, at most: in files, as operands and outputs of two passes, and watched
EDGE = 0x5A  # byte on both sides of a view


class Collectives(JointCheck):
    """Two rounds of one operation in the same buffers: what the second one finds of the first one is stale."""

    needs_library = False
    usual = ({"operation": "all_reduce"}, {"operation": "all_to_all"}, {"operation": "all_gather"})

    spec = CheckSpec(
        name="collectives",
        summary="collective operations and messages between ranks, each element judged on each rank",
        data_kinds=("exact",),
        sizes=("n",),
        params=(
            Param("operation", "all_reduce", "what the ranks do together", OPERATIONS),
            Param("dtype", "bf16", "of what is sent", ("bf16", "fp16", "fp32", "int32")),
            Param("n", 1000, "elements of a chunk", label="n"),
            Param("reduce", "sum", "of all_reduce and reduce_scatter", ("sum", "max"), label="reduce-"),
            Param("form", "call", "waited for at once, later, or several as one", FORMS, label="form-"),
            Param("groups", "all", "one, two halves, several of all at once, or made anew", GROUPS, label="groups-"),
            Param("uneven", False, "chunks of all_to_all have different sizes, and some none"),
            Param("unaligned", False, "buffers begin one element behind an aligned address"),
            Param("in_place", False, "the rank's own chunk lies in the buffer that is filled"),
            Param("staggered", False, "each rank comes later than the one before, and produces its data late"),
        ),
        rows=("operation",),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        operation = params["operation"]
        if params["reduce"] != "sum" and operation not in REDUCING:
            return f"{operation} reduces nothing"
        if params["uneven"] and operation != "all_to_all":
            return f"chunks of {operation} have one size"
        if params["in_place"] and operation not in IN_PLACE:
            return f"in_place goes with {', '.join(IN_PLACE)}"
        if params["form"] == "coalesced" and operation not in COALESCED:
            return f"coalesced goes with {', '.join(COALESCED)}"
        if operation == "barrier" and (params["dtype"] != "int32" or params["n"] != 1):
            return "barrier takes int32 and n = 1"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        """What this rank sends in each round: its chunks, one after the other."""
        return {f"round{round}": _sent(case, round) for round in range(rounds(case))}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        from gpucheck.checks.rank_data import DTYPES, exact

        dtype = DTYPES[case["dtype"]]
        expected = {f"out{round}": exact(right(case, round), dtype) for round in range(rounds(case))}
        if case["unaligned"]:
            buffers = 2 * (SEVERAL if case["groups"] == "several" else 1)
            expected["edges"] = exact(torch.full((buffers, 2, dtype.itemsize), EDGE), torch.uint8)
        return expected

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        from torch import distributed

        backend = distributed.get_backend()
        if case["form"] == "coalesced" and case["operation"] != "send_recv" and backend == "gloo":
            raise Inapplicable("gloo cannot make several operations one")
        return {**inputs, "groups": _Groups(case)}

    def operands(self, case: Case, prepared: Any) -> Any:
        return {name: value for name, value in prepared.items() if name != "groups"}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        return _Launch(case, prepared, runtime).run()

    @contextmanager
    def exchange(self, case: Case, prepared: Any, runtime: Runtime) -> Iterator[Callable[[], Any] | None]:
        from gpucheck.checks.collective_calls import CALLS, all_reduce_again

        unusual = case["form"] != "call" or case["groups"] != "all" or case["staggered"] or case["in_place"]
        if case["operation"] not in BANDWIDTH or unusual:
            yield None
            return
        each = _Launch(case, prepared, runtime).exchange(0)
        yield partial(all_reduce_again if case["operation"] == "all_reduce" else CALLS[case["operation"]], each)

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost | None:
        """No work but the bytes that each link carries, as NCCL's tests count them for the bandwidth of its bus.

        Of S bytes in the larger buffer of each of n ranks that is S (n-1)/n, and twice as much for an all-reduce.
        """
        from gpucheck.checks.rank_data import DTYPES

        if case["operation"] not in BANDWIDTH:
            return None
        elements = float(sum(size(case, case.rank, other) for other in members(case) if other != case.rank))
        if case["operation"] == "all_reduce":  # the buffer is one chunk, the others are one for each rank
            elements *= 2 / len(members(case))
        return Cost(0.0, elements * DTYPES[case["dtype"]].itemsize)

    def host_memory(self, case: Case) -> int:
        """By the larger one of what a rank gives and gets, in each round: its copies, and one of them in float64."""
        given = sum(size(case, case.rank, other) for other in _receivers(case))
        got = 0 if case["operation"] in REDUCING else sum(size(case, other, case.rank) for other in members(case))
        width = 4 if case["dtype"].endswith("32") else 2
        return rounds(case) * max(given, got) * (COPIES * width + 8)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        one, two = Axes(("element",), (0,)), Axes(("sender", "element"), (1, 0))
        return {f"out{round}": one if one_row(case) else two for round in range(rounds(case))}

    def transfers(
        self, case: Case, inputs: dict[str, Tensor], outputs: dict[str, Tensor], expected: dict[str, Expected]
    ) -> list[Transfer]:
        from gpucheck.checks.wrong_transfers import transfers

        return transfers(case, outputs, expected)


def rounds(case: Case) -> int:
    """How many rounds there are; one group each where several are at work at once."""
    return SEVERAL if case["groups"] == "several" else ROUNDS


def members(case: Case, rank: int | None = None) -> tuple[int, ...]:
    """The ranks in the group of a rank, this one by default."""
    ranks = range(case.ranks)
    if case["groups"] == "halves":
        return tuple(ranks[(case.rank if rank is None else rank) % 2 :: 2])
    return tuple(ranks)


def size(case: Case, sender: int, receiver: int) -> int:
    """The elements of a chunk."""
    n: int = case["n"]
    return (sender * 3 + receiver * 5 + 1) % UNEVEN * max(1, n // UNEVEN) if case["uneven"] else n


def one_row(case: Case) -> bool:
    """Whether an output is one sequence of elements: a sum, or chunks of different sizes."""
    return case["operation"] in (*REDUCING, "barrier") or case["uneven"]


def to_whom(case: Case, receiver: int) -> int:
    """The receiver that a chunk is made for: the rank, or all of them."""
    from gpucheck.checks.rank_data import ALL

    return receiver if case["operation"] in TO_EACH else ALL


def _receivers(case: Case) -> tuple[int, ...]:
    """For whom a rank has a chunk."""
    return members(case) if case["operation"] in TO_EACH else (case.rank,)


def _sent(case: Case, round: int) -> Tensor:
    """The chunks that this rank sends in a round, one after the other."""
    made = [_chunk(case, round, case.rank, other) for other in _receivers(case)]
    return made[0] if len(made) == 1 else torch.cat(made)


def _chunk(case: Case, round: int, sender: int, receiver: int) -> Tensor:
    from gpucheck.checks.rank_data import chunk

    summed = case["operation"] in REDUCING and case["reduce"] == "sum"
    count = size(case, sender, receiver)
    return chunk(case, round, sender, to_whom(case, receiver), count, summed=summed)


def given(case: Case, round: int) -> Iterator[tuple[int, Tensor]]:
    """What each member gives this rank in a round, with the sender: made one by one, since they may be large."""
    return ((sender, _chunk(case, round, sender, case.rank)) for sender in members(case))


def chunks(case: Case, round: int) -> dict[int, Tensor]:
    """The same, all of it, by sender."""
    return dict(given(case, round))


def reduced(case: Case, parts: Iterable[Tensor]) -> Tensor:
    """The sum, or the largest, of what several ranks gave, in float64; no more than two of them are held at a time."""
    from gpucheck.verify.views import PIECE

    total: Tensor | None = None
    for part in parts:
        if total is None:
            total = part.double()
            continue
        for so_far, more in zip(total.split(PIECE), part.split(PIECE), strict=True):  # else torch copies all of a part
            if case["reduce"] == "sum":
                so_far.add_(more)
            else:
                torch.maximum(so_far, more.double(), out=so_far)
    assert total is not None
    return total


def right(case: Case, round: int) -> Tensor:
    """What this rank must have received in a round, in float64."""
    if case["operation"] == "barrier":
        return torch.full((1,), float(len(members(case))), dtype=torch.float64)
    parts = (part for _, part in given(case, round))
    if case["operation"] in REDUCING:
        return reduced(case, parts)
    sizes = [size(case, sender, case.rank) for sender in members(case)]
    came = torch.empty(sum(sizes), dtype=torch.float64)
    for place, part in zip(came.split(sizes), parts, strict=True):
        place.copy_(part)
    return came if case["uneven"] else came.view(len(sizes), -1)


class _Groups:
    """The process groups of one launch: made before it or in it, on all ranks alike, and destroyed at its end."""

    def __init__(self, case: Case) -> None:
        from torch import distributed

        self._case = case
        self._made: list[Any] = []
        if case["groups"] == "halves":
            both = [distributed.new_group([*range(case.ranks)[first::2]]) for first in range(min(2, case.ranks))]
            self._made = [both[case.rank % 2]]
        elif case["groups"] == "several":
            self._made = [distributed.new_group() for _ in range(SEVERAL)]

    def of(self, round: int) -> Any:
        """The group of a round; None is the one of all ranks."""
        from torch import distributed

        if self._case["groups"] == "fresh":
            self._made.append(distributed.new_group())
            return self._made[-1]
        return self._made[round % len(self._made)] if self._made else None

    def destroy(self) -> None:
        """Destroys those that were made."""
        from torch import distributed

        for group in self._made:
            distributed.destroy_process_group(group)
        self._made = []


class _Launch:
    """The rounds of a case on one rank."""

    def __init__(self, case: Case, prepared: Any, runtime: Runtime) -> None:
        self.case, self.prepared, self.runtime = case, prepared, runtime
        self._edges: list[Tensor] = []

    def run(self) -> dict[str, Tensor]:
        """Makes all rounds and returns what was received in each."""
        groups: _Groups = self.prepared["groups"]
        several = self.case["groups"] == "several"
        kept: dict[str, Tensor] = {}
        waiting: list[tuple[int, list[Any], Tensor]] = []
        sent, received = self._buffers()
        for round in range(rounds(self.case)):
            if round and several:  # else each round finds the buffers of the one before
                sent, received = self._buffers()
            works = self._round(round, sent, received, groups.of(round))
            if several:
                waiting.append((round, works, received))
            else:
                _wait(works)
                kept[f"out{round}"] = received.clone()
        for round, works, buffer in waiting:
            _wait(works)
            kept[f"out{round}"] = buffer.clone()
        if not one_row(self.case):
            kept = {name: value.view(len(members(self.case)), -1) for name, value in kept.items()}
        if self._edges:
            kept["edges"] = torch.stack(self._edges)
        self.runtime.synchronize()
        groups.destroy()
        return kept

    def _round(self, round: int, sent: Tensor, received: Tensor, group: Any) -> list[Any]:
        """Produces the data of a round and starts its exchange; returns what is to be waited for."""
        from gpucheck.checks import collective_calls
        from gpucheck.checks.collective_calls import CALLS

        case = self.case
        if case["staggered"]:
            self._come_late(round)
        sent.copy_(self.prepared[f"round{round}"])
        received.view(torch.uint8).fill_(0xFF)
        exchange = self._exchange(sent, received, group)
        call = CALLS[case["operation"]]
        if case["in_place"]:
            call = collective_calls.all_gather_in_place
        if case["form"] == "coalesced" and case["operation"] == "send_recv":
            call = collective_calls.batched
        elif case["form"] == "coalesced":
            return collective_calls.coalesced(_halves(exchange), call)
        return call(exchange)

    def exchange(self, round: int) -> Any:
        """The exchange of a round in the group of all ranks, in buffers of its own."""
        sent, received = self._buffers()
        sent.copy_(self.prepared[f"round{round}"])
        return self._exchange(sent, received, None)

    def _exchange(self, sent: Tensor, received: Tensor, group: Any) -> Any:
        from gpucheck.checks.collective_calls import Exchange

        case = self.case
        return Exchange(
            sent,
            received,
            tuple(size(case, case.rank, other) for other in _receivers(case)),
            tuple(size(case, other, case.rank) for other in members(case)),
            members(case),
            case.rank,
            group,
            case["reduce"],
            asynchronous=case["form"] != "call" or case["groups"] == "several",
        )

    def _come_late(self, round: int) -> None:
        """Comes later than the rank before, in the second round earlier; on a GPU the data are produced late too."""
        place = self.case.rank if round % 2 == 0 else self.case.ranks - 1 - self.case.rank
        if self.runtime.device.type == "cuda":
            torch.cuda._sleep(5_000_000 * (place + 1))
        else:
            time.sleep(LATER * place)

    def _buffers(self) -> tuple[Tensor, Tensor]:
        """For what is sent and what is received in a round."""
        return self._buffer(self.prepared["round0"].numel()), self._buffer(self._count())

    def _count(self) -> int:
        case = self.case
        sizes = [size(case, other, case.rank) for other in members(case)]
        return sizes[0] if case["operation"] in (*REDUCING, "barrier") else sum(sizes)

    def _buffer(self, count: int) -> Tensor:
        """Memory for so many elements; between two elements that nobody may write, if it is to be unaligned."""
        from gpucheck.checks.rank_data import DTYPES

        dtype, device = DTYPES[self.case["dtype"]], self.runtime.device
        if not self.case["unaligned"]:
            return torch.empty(count, dtype=dtype, device=device)
        whole = torch.empty((count + 2) * dtype.itemsize, dtype=torch.uint8, device=device)
        whole.fill_(EDGE)
        rows = whole.view(-1, dtype.itemsize)
        self._edges.append(rows[:: count + 1])
        return whole.view(dtype)[1 : count + 1]


def _halves(exchange: Any) -> list[Any]:
    """An all_reduce as two of half its elements; one of a single element stays one."""
    from dataclasses import replace

    cut = (exchange.sent.numel() + 1) // 2
    parts = [part for part in (slice(None, cut), slice(cut, None)) if exchange.sent[part].numel()]
    return [replace(exchange, sent=exchange.sent[part], received=exchange.received[part]) for part in parts]


def _wait(works: list[Any]) -> None:
    for work in works:
        if work is not None and not isinstance(work, int):
            work.wait()
