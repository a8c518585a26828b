"""The library's dispatch of rows to the ranks of their experts and back, all ranks one after the other in a process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.library.adapters.base import Adapter
from gpucheck.library.adapters.expert_exchange import ExchangeSizes, LibraryExchange
from gpucheck.model.errors import Inapplicable

HIDDEN, POISON = 48, -999.0


class OneProcessPool:
    """Stands in for symmetric memory: the buffers of all ranks lie in this process, and nobody need wait."""

    def __init__(self, rank: int, ranks: int, buffers: dict[str, tuple[Tensor, ...]]) -> None:
        self.mesh = SimpleNamespace(world_size=ranks, local_rank=rank)
        self.hdl = SimpleNamespace(barrier=lambda channel: None)
        self._ranks, self._buffers = ranks, buffers

    def make_empty(self, shape: tuple[int, ...], dtype: torch.dtype, region: str) -> tuple[Tensor, ...]:
        made = tuple(torch.full(shape, POISON, dtype=dtype) for _ in range(self._ranks))
        return self._buffers.setdefault(region, made)


def held_by(ranks: int, experts: int) -> tuple[range, ...]:
    return tuple(range(experts * rank // ranks, experts * (rank + 1) // ranks) for rank in range(ranks))


@pytest.fixture
def exchanges(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the exchange of each rank, over buffers of one process."""
    if adapter.generation not in ("v3.6", "v3.7", "v3.8"):
        pytest.skip(f"{adapter.generation} has no distributed.py")
    module = __import__("triton_kernels.distributed", fromlist=["x"])
    buffers: dict[str, tuple[Tensor, ...]] = {}

    def call(sizes: ExchangeSizes, name: str, *given: Tensor) -> Tensor:
        world = SimpleNamespace(get_rank=lambda: sizes.rank, get_world_size=lambda: sizes.ranks)
        monkeypatch.setattr(module, "dist", world, raising=False)
        pool = OneProcessPool(sizes.rank, sizes.ranks, buffers)
        moved: Tensor = getattr(LibraryExchange(sizes, torch.device("cpu"), pool), name)(*given)
        return moved

    return call


@pytest.mark.parametrize(("ranks", "per_token"), [(2, 2), (4, 4), (2, 1)])
def test_rows_come_to_the_ranks_of_their_experts_and_back(exchanges: Any, ranks: int, per_token: int) -> None:
    tokens, experts, generator = 8, 6, torch.Generator().manual_seed(ranks)
    ids = torch.rand((tokens, experts), generator=generator).topk(per_token, 1).indices.to(torch.int32)
    x = torch.randint(-9, 9, (tokens, HIDDEN), generator=generator).to(torch.bfloat16)
    owners, order = ids.flatten().sort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    sizes = [ExchangeSizes(tokens, per_token, HIDDEN, held_by(ranks, experts), rank) for rank in range(ranks)]
    own = x.chunk(ranks)
    got = [exchanges(each, "to_experts", own[each.rank], ids, places.view(ids.shape).to(torch.int32)) for each in sizes]
    for rank, rows in enumerate(got):
        here = torch.tensor([owner in sizes[0].held[rank] for owner in owners.tolist()])
        assert torch.equal(rows[here], x[order[here] // per_token]), "each row of an expert here is its token's"
        assert (rows[~here] == POISON).all(), "nothing else is written"
    sent = [torch.where(rows == POISON, torch.nan, rows + 1) for rows in got]
    back = [exchanges(each, "to_tokens", sent[each.rank], ids, order.to(torch.int32)) for each in sizes]
    for rank, rows in enumerate(back):
        assert torch.equal(rows.view(-1, per_token, HIDDEN), own[rank][:, None].expand(-1, per_token, -1) + 1)


@pytest.mark.parametrize(
    ("ranks", "per_token", "tokens", "says"),
    [(3, 2, 6, "ranks to be a power of two"), (2, 3, 6, "experts per token"), (4, 2, 6, "as many tokens on each rank")],
)
def test_what_the_librarys_dispatch_does_not_take_is_inapplicable(
    adapter: Adapter, ranks: int, per_token: int, tokens: int, says: str
) -> None:
    with pytest.raises(Inapplicable, match=says if adapter.generation in ("v3.6", "v3.7", "v3.8") else "distributed"):
        adapter.exchange(ExchangeSizes(tokens, per_token, HIDDEN, held_by(ranks, 8), 0), torch.device("cpu"))


def test_without_a_group_of_ranks_it_is_inapplicable(adapter: Adapter) -> None:
    says = "one process group" if adapter.generation in ("v3.6", "v3.7", "v3.8") else "has no distributed.py"
    with pytest.raises(Inapplicable, match=says):
        adapter.exchange(ExchangeSizes(8, 2, HIDDEN, held_by(2, 8), 0), torch.device("cpu"))
