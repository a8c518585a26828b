"""The part of one rank in an expert block that ranks share: what it cuts out, computes, sends and adds up.

Three ways, as servers have them. ``tensor``: each rank has a slice of the width of every expert. ``expert``: each has
some of the experts, and all tokens. ``dispatch``: each has some of the experts and some of the tokens, and sends these
to where their experts are. In the first two, the ranks' outputs are summed by an all-reduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpucheck.checks.base import Runtime
from gpucheck.checks.moe import launch_config
from gpucheck.checks.sharded.exact_block import SWIGLU
from gpucheck.checks.sharded.shares import local_ids, of_experts, of_width, owners, share, width_share
from gpucheck.library.adapters.base import Routing, Weight
from gpucheck.library.adapters.expert_exchange import ExchangeSizes, ExpertExchange
from gpucheck.model.case import Case

TENSOR, EXPERT, DISPATCH = "tensor", "expert", "dispatch"
Outputs = dict[str, Tensor]


class Collectives(Protocol):
    """What the ranks of a block do together."""

    def all_reduce(self, tensor: Tensor) -> None:
        """Puts the sum over all ranks in place of the tensor."""

    def all_to_all(self, sent: Tensor, counts: list[int], arriving: list[int]) -> Tensor:
        """The rows that this rank gets, in order of the ranks they come from.

        Args:
            sent: rows for rank 0, then for rank 1, ...
            counts: how many for each.
            arriving: how many come from each.
        """


class TorchCollectives:
    """:class:`Collectives` by torch.distributed, among all ranks of the run."""

    def all_reduce(self, tensor: Tensor) -> None:
        import torch.distributed as dist

        dist.all_reduce(tensor)

    def all_to_all(self, sent: Tensor, counts: list[int], arriving: list[int]) -> Tensor:
        import torch.distributed as dist

        got = sent.new_empty((sum(arriving), *sent.shape[1:]))
        dist.all_to_all_single(got, sent.contiguous(), arriving, counts)
        return got


@dataclass(frozen=True)
class LocalExperts:
    """The experts of a rank, or its slice of all of them, as the library takes them."""

    runtime: Runtime
    first: Weight
    second: Weight
    bias1: Tensor  # (E, 2I)
    bias2: Tensor  # (E, H)
    partial: bool  # some slots have no expert here
    combine: str  # who adds up the rows of a token: "library" or "own"

    @classmethod
    def of(cls, case: Case, weights: Mapping[str, Tensor], runtime: Runtime, *, partial: bool) -> LocalExperts:
        """Brings a rank's share of the weights into the library's form."""
        library, place = runtime.library, runtime.place
        first, second = (
            library.weight(case["weight"], weights[name], weights.get(f"{name}_scale"), case["layout"], place)
            for name in ("w1", "w2")
        )
        bias1, bias2 = (place(weights[name].contiguous(), name) for name in ("bias1", "bias2"))
        return cls(runtime, first, second, bias1, bias2, partial, case["combine"])

    def operands(self) -> dict[str, Any]:
        """What launches read and must not write."""
        return {"first": self.first, "second": self.second, "bias1": self.bias1, "bias2": self.bias2}

    def __call__(self, x: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
        """What the experts here add to tokens (T, H) with choices (T, k), -1 where an expert is not here: (T, H)."""
        library, config = self.runtime.library, launch_config()
        routing = library.routed(ids, gates, len(self.bias2), self.partial)
        inner = library.matmul(
            x,
            self.first,
            out_dtype=torch.bfloat16,
            bias=self.bias1,
            routing=routing,
            gather=True,
            swiglu=SWIGLU,
            config=config,
        )
        rows = library.matmul(
            inner,
            self.second,
            out_dtype=torch.bfloat16,
            bias=self.bias2,
            routing=routing,
            scatter=self.combine == "library",
            gammas=routing.gates,
            config=config,
        )
        return rows if self.combine == "library" else summed_slots(rows, routing)


def summed_slots(rows: Tensor, routing: Routing) -> Tensor:
    """The sums of the rows of each token, (T, H) of expert-sorted rows (T*k, H).

    Slots whose expert is elsewhere have no row, and the rows that are left over for them were never written.
    """
    places = routing.to_sorted.view(-1, routing.per_token).long()
    slots = rows[places].float()  # the place -1 is one of those left over
    return slots.masked_fill((places < 0)[..., None], 0.0).sum(1).to(rows.dtype)


class Shared:
    """The block of a case on one rank; what it returns is named in :mod:`gpucheck.checks.sharded.shard_reference`."""

    def __init__(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime, collectives: Collectives) -> None:
        self.case, self.inputs, self.collectives = case, inputs, collectives
        rank, size, way = case.rank, case.ranks, case["parallel"]
        self.held = share(case["experts"], rank, size)
        if way == TENSOR:
            self._take_all_widths(runtime)
            part = width_share(case["intermediate"], rank, size)
            weights, partial = of_width(inputs, part, with_bias=rank == 0), case["empty"]
        else:
            weights, partial = of_experts(inputs, self.held), True
        self.experts = LocalExperts.of(case, weights, runtime, partial=partial)
        self.tokens = share(case["m"], rank, size)
        self.owners = owners(case["experts"], size).to(inputs["ids"].device)
        self.exchange: ExpertExchange | None = None
        if case["through"] == "library":
            parts = [share(case["experts"], each, size) for each in range(size)]
            held = tuple(range(part.start, part.stop) for part in parts)
            sizes = ExchangeSizes(case["m"], case["top_k"], case["hidden"], held, rank)
            self.exchange = runtime.library.exchange(sizes, runtime.device)

    def _take_all_widths(self, runtime: Runtime) -> None:
        """Brings one slice of each width that a rank has into the library's form.

        A width that the library does not take is inapplicable on all ranks alike: none may wait for another.
        """
        if self.case["layout"] == "strided":
            return
        parts = [width_share(self.case["intermediate"], rank, self.case.ranks) for rank in range(self.case.ranks)]
        for part in {part.stop - part.start: part for part in parts}.values():
            LocalExperts.of(self.case, of_width(self.inputs, part, with_bias=True), runtime, partial=False)

    def launch(self) -> Outputs:
        """Computes and exchanges what the case asks for."""
        if self.exchange is not None:
            return self._through_library(self.exchange)
        if self.case["parallel"] == DISPATCH:
            return self._dispatched()
        x, ids, gates = (self.inputs[name] for name in ("x", "ids", "id_gates"))
        outputs = {}
        if self.case["parallel"] == EXPERT:
            outputs["slots"] = ids = local_ids(ids, self.held)
        outputs["partial"] = self.experts(x, ids, gates)
        outputs["y"] = outputs["partial"].clone()
        self.collectives.all_reduce(outputs["y"])
        return outputs

    def _dispatched(self) -> Outputs:
        """Sends each token once to every rank that has experts of it, and adds up what comes back."""
        x, ids, gates = (self.inputs[name][self.tokens] for name in ("x", "ids", "id_gates"))
        owner = torch.where(ids >= 0, self.owners[ids.clamp_min(0).long()], -1)
        going = [(owner == rank).any(1).nonzero().flatten() for rank in range(self.case.ranks)]
        counts = [len(tokens) for tokens in going]
        arriving = self._exchanged(counts)
        order = torch.cat(going)
        got = [self.collectives.all_to_all(each[order], counts, arriving) for each in (x, ids, gates)]
        slots = local_ids(got[1], self.held)
        partial = self._of_any(got[0], slots, got[2])
        back = self.collectives.all_to_all(partial, arriving, counts)
        y = torch.zeros_like(x, dtype=torch.float32)
        for tokens, rows in zip(going, back.split(counts), strict=True):  # in order of rank, each token once a rank
            y[tokens] += rows.float()
        return {"received": got[0], "slots": slots, "partial": partial, "y": y.to(x.dtype)}

    def _through_library(self, exchange: ExpertExchange) -> Outputs:
        """The library moves a row for each slot, sorted by expert; experts and sums are as without it."""
        x, ids, k = self.inputs["x"], self.inputs["ids"], self.case["top_k"]
        owners, order = ids.flatten().sort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        rows = exchange.to_experts(x[self.tokens].contiguous(), ids, places.view(ids.shape).to(torch.int32))
        own = slice(int((owners < self.held.start).sum()), int((owners < self.held.stop).sum()))
        received, slots = rows[own].clone(), local_ids(owners[own, None], self.held)
        partial = self._of_any(received, slots, torch.ones(slots.shape, device=slots.device))
        workspace = torch.empty_like(rows)
        workspace[own] = partial
        back = exchange.to_tokens(workspace, ids, order.to(torch.int32)).view(-1, k, x.shape[1])
        y = (back.float() * self.inputs["id_gates"][self.tokens][..., None]).sum(1)
        return {"received": received, "slots": slots, "partial": partial, "y": y.to(x.dtype)}

    def _exchanged(self, counts: list[int]) -> list[int]:
        """How many rows each rank sends here, given how many go from here to each."""
        ones = [1] * len(counts)
        sent = torch.tensor(counts, device=self.inputs["ids"].device)
        arriving: list[int] = self.collectives.all_to_all(sent, ones, ones).tolist()
        return arriving

    def _of_any(self, x: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
        """The experts' part of any number of tokens: a rank that got none computes one without experts."""
        if len(x):
            return self.experts(x, ids, gates)
        none = ids.new_full((1, ids.shape[1]), -1)
        return self.experts(x.new_zeros((1, x.shape[1])), none, gates.new_zeros(none.shape))[:0]
