"""Runs all ranks of a shared expert block: in threads of this process, or as processes that gloo connects."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpucheck.checks.operands import decode_weight
from gpucheck.checks.sharded.dispatch import Shared, TorchCollectives
from gpucheck.checks.sharded_moe import ShardedMoe
from gpucheck.library.adapters.base import Routing
from gpucheck.library.adapters.expert_exchange import ExchangeSizes, ExpertExchange
from gpucheck.model.case import Case
from gpucheck.model.errors import Inapplicable
from gpucheck.verify.judge import Judgement, judge

Outputs = dict[str, Tensor]
SIZES = {"m": 11, "hidden": 32, "intermediate": 256, "experts": 8}


@dataclass
class PlainLibrary:
    """The part of an adapter that the block calls, in plain torch; rows without an expert here hold NaN."""

    among: _OfThread | None = None  # the ranks that it moves rows between

    def exchange(self, sizes: ExchangeSizes, device: torch.device) -> ExpertExchange:
        assert self.among is not None
        return PlainExchange(sizes, self.among)

    def weight(self, kind: str, data: Tensor, scale: Tensor | None, layout: str, place: Any) -> Tensor:
        terms = data.shape[1] * (2 if kind == "mxfp4" else 1)
        if layout == "default" and terms % 64:
            raise Inapplicable("as some generations refuse their own layout")
        return torch.stack([decode_weight(kind, w, None if scale is None else scale[e]) for e, w in enumerate(data)])

    def routed(self, ids: Tensor, gates: Tensor, experts: int, partial: bool) -> Routing:
        flat = ids.flatten().long()
        assert int(flat.max()) < experts and (partial or int(flat.min()) >= 0), "an expert that is not in the table"
        order = torch.where(flat < 0, experts, flat).sort(stable=True).indices
        served = int((flat >= 0).sum())
        places = torch.full_like(flat, -1)
        places[order[:served]] = torch.arange(served)
        histogram = torch.bincount(flat[flat >= 0], minlength=experts)
        return Routing(histogram, order, places, gates.flatten()[order], experts, ids.shape[1], partial)

    def matmul(
        self, x: Tensor, weight: Tensor, *, bias: Tensor, routing: Routing, out_dtype: torch.dtype, config: Any,
        gather: bool = False, scatter: bool = False, gammas: Tensor | None = None, swiglu: Any = None,
    ) -> Tensor:  # fmt: skip
        rows = x[routing.to_flat // routing.per_token] if gather else x
        columns = weight.shape[-1] // (2 if swiglu else 1)
        made, start = torch.full((len(rows), columns), torch.nan, dtype=out_dtype), 0
        for expert, count in enumerate(routing.histogram.tolist()):
            part = rows[start : start + count].double() @ weight[expert] + bias[expert].double()
            if swiglu:
                gate, linear = part[:, 0::2].clamp(max=swiglu[1]), part[:, 1::2].clamp(-swiglu[1], swiglu[1])
                part = gate * torch.sigmoid(swiglu[0] * gate) * (linear + 1)
            if gammas is not None:
                part = part * gammas[start : start + count, None]
            made[start : start + count], start = part.to(out_dtype), start + count
        if not scatter:
            return made
        zero = torch.zeros((1, columns), dtype=out_dtype)
        padded = torch.cat([made[:start], zero])
        places = torch.where(routing.to_sorted < 0, start, routing.to_sorted)
        return padded[places].view(-1, routing.per_token, columns).double().sum(1).to(out_dtype)


@dataclass
class PlainExchange:
    """The library's dispatch, among threads."""

    sizes: ExchangeSizes
    among: _OfThread

    def to_experts(self, x: Tensor, ids: Tensor, to_sorted: Tensor) -> Tensor:
        every = torch.cat(self.among.threads.exchange(self.among.rank, x))
        held = self.sizes.held[self.sizes.rank]
        here = (ids >= held.start) & (ids < held.stop)
        rows = torch.full((ids.numel(), self.sizes.hidden), torch.nan, dtype=x.dtype)
        rows[to_sorted[here].long()] = every[here.nonzero()[:, 0]]
        return rows

    def to_tokens(self, rows: Tensor, ids: Tensor, to_flat: Tensor) -> Tensor:
        every = torch.stack(self.among.threads.exchange(self.among.rank, rows))
        flat = ids.flatten()[to_flat.long()]
        owner = torch.tensor([next(r for r, held in enumerate(self.sizes.held) if e in held) for e in flat.tolist()])
        back = torch.empty_like(rows)
        back[to_flat.long()] = every[owner, torch.arange(len(flat))]
        return back.chunk(self.sizes.ranks)[self.sizes.rank]


@dataclass
class PlainRuntime:
    """A runtime on the CPU that watches no memory."""

    library: Any
    device: torch.device = torch.device("cpu")

    def place(self, tensor: Tensor, name: str = "") -> Tensor:
        return tensor.clone()


class Threads:
    """Collectives among threads of one process, each of which has the view of its rank."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.barrier = ranks, threading.Barrier(ranks, timeout=60)
        self.shown: list[Any] = [None] * ranks

    def of(self, rank: int) -> _OfThread:
        return _OfThread(self, rank)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """What each rank shows in this step."""
        self.shown[rank] = value
        self.barrier.wait()
        everything = list(self.shown)
        self.barrier.wait()
        return everything


@dataclass
class _OfThread:
    threads: Threads
    rank: int

    def all_reduce(self, tensor: Tensor) -> None:
        tensor.copy_(sum(self.threads.exchange(self.rank, tensor.clone())))

    def all_to_all(self, sent: Tensor, counts: list[int], arriving: list[int]) -> Tensor:
        parts = [each[self.rank] for each in self.threads.exchange(self.rank, sent.split(counts))]
        assert [len(part) for part in parts] == arriving
        return torch.cat(parts)


def case_of(seed: int = 5, **params: Any) -> Case:
    check = ShardedMoe()
    case = check.spec.case({**SIZES, **params}, "exact", seed)
    assert check.reason_against(case.params, "exact") is None
    return case


def inputs_of(case: Case) -> Outputs:
    return ShardedMoe().inputs(case, torch.Generator().manual_seed(case.input_seed))


def in_threads(case: Case, ranks: int, inputs: Outputs | None = None) -> list[Outputs]:
    """What each rank returns."""
    held, threads = inputs_of(case) if inputs is None else inputs, Threads(ranks)

    def run(rank: int) -> Outputs:
        try:
            among = threads.of(rank)
            runtime: Any = PlainRuntime(PlainLibrary(among))
            return Shared(case.at(rank, ranks), dict(held), runtime, among).launch()
        except BaseException:
            threads.barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return [future.result() for future in [pool.submit(run, rank) for rank in range(ranks)]]


def over_gloo(rank: int, ranks: int, meeting: str, cases: list[Case], folder: str) -> None:
    """One process of a group; leaves its outputs of each case in a folder."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    for number, case in enumerate(cases):
        runtime: Any = PlainRuntime(PlainLibrary())
        outputs = Shared(case.at(rank, ranks), inputs_of(case), runtime, TorchCollectives()).launch()
        torch.save(outputs, Path(folder) / f"{number}-{rank}.pt")
    dist.destroy_process_group()


def judged(case: Case, rank: int, ranks: int, outputs: Outputs) -> Judgement:
    """The outputs of a rank against its reference."""
    check, own, inputs = ShardedMoe(), case.at(rank, ranks), inputs_of(case)
    return judge(outputs, check.reference(own, inputs), check.axes(own, inputs))
