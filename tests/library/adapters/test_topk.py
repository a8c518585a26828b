"""What every adapter's top-k and routing must do, against plain torch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpucheck.checks.experts import BLOCK_SIZES, SCHEDULE, tables, whole
from gpucheck.library.adapters.base import Adapter
from gpucheck.model.errors import Inapplicable
from gpucheck.worker.device.guarded_memory import GuardedMemory, WatchedAllocation
from tests.library.adapters.conftest import route_by


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


def chosen(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and softmax of the k largest, ids ascending; among equals the smaller id is chosen."""
    ids = torch.argsort(-logits.double(), dim=1, stable=True)[:, :k]
    gates = torch.softmax(logits.gather(1, ids).double(), dim=1)
    order = ids.argsort(dim=1)
    return ids.gather(1, order), gates.gather(1, order)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 13, 4), (35, 40, 2), (3, 8, 1)])
def test_topk(adapter: Adapter, tokens: int, experts: int, k: int) -> None:
    logits = torch.randn(tokens, experts)
    logits[0] = 0  # all equal
    top = adapter.topk(logits, k)
    ids, gates = chosen(logits, k)
    assert top.experts.dtype == torch.int32
    assert torch.equal(top.experts.long(), ids)
    torch.testing.assert_close(top.values.double(), gates, rtol=1e-6, atol=1e-7)


def test_topk_of_three_is_inapplicable(adapter: Adapter) -> None:
    with pytest.raises(Inapplicable, match="power of two"):
        adapter.topk(torch.randn(4, 8), 3)
    with pytest.raises(Inapplicable, match="power of two"):
        adapter.route(torch.randn(4, 8), 3)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(70, 13, 4), (3, 40, 2)])
def test_route(adapter: Adapter, tokens: int, experts: int, k: int) -> None:
    logits = torch.randn(tokens, experts)
    logits[:, 3] += 6  # a crowded expert
    logits[:, 5] -= 60  # and an empty one
    routing = adapter.route(logits, k)
    ids, gates = chosen(logits, k)
    expected = route_by(ids, experts)
    for name in ("histogram", "to_flat", "to_sorted"):
        assert getattr(routing, name).dtype == torch.int32
        assert torch.equal(getattr(routing, name), getattr(expected, name)), name
    assert (routing.experts, routing.per_token) == (experts, k)
    torch.testing.assert_close(routing.gates.double(), gates.flatten()[expected.to_flat.long()], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 8, 2), (37, 12, 4), (70, 40, 1), (90, 6, 2)])
def test_the_schedule_that_comes_with_a_routing(adapter: Adapter, tokens: int, experts: int, k: int) -> None:
    logits = torch.randn(tokens, experts)
    logits[:, 3] += 6
    logits[:, 5] -= 60
    routing = adapter.route(logits, k)
    schedule, expected = adapter.schedule(routing), whole(tables(chosen(logits, k)[0], logits[:, :k], experts))
    assert schedule.block_sizes == BLOCK_SIZES
    for name in SCHEDULE:
        table = getattr(schedule, name)
        assert table.dtype == torch.int32 and torch.equal(table.long(), expected[name]), name


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 8, 2), (37, 12, 4), (70, 40, 1)])
def test_choices_already_made_are_sorted_by_the_library(
    adapter: Adapter, tokens: int, experts: int, k: int, partial: bool
) -> None:
    ids, gates = torch.rand(tokens, experts).topk(k).indices.sort(1).values, torch.rand(tokens, k)
    if partial:
        ids[ids > experts // 2] = -1
    routing = adapter.routed(ids.int(), gates, experts, partial)
    expected = whole(tables(ids, gates, experts))
    for name in ("histogram", "to_flat", "to_sorted"):
        assert torch.equal(getattr(routing, name).long(), expected[name]), name
    for name in SCHEDULE:
        assert torch.equal(getattr(adapter.schedule(routing), name).long(), expected[name]), name
    served = int(routing.histogram.sum())
    assert torch.equal(routing.gates[:served], gates.flatten()[routing.to_flat[:served].long()])
    assert (routing.experts, routing.per_token, routing.partial) == (experts, k, partial)


@pytest.mark.parametrize("made", ["route", "routed"])
def test_products_use_the_routing_as_the_library_returned_it(adapter: Adapter, made: str) -> None:
    """Whoever builds the block map anew does not see that it was changed."""
    logits, k, experts = torch.randn(20, 5), 2, 5
    weight = adapter.weight("bf16", torch.randn(experts, 32, 16).bfloat16(), None, "strided", lambda tensor: tensor)
    x = torch.randn(20, 32).bfloat16()
    ids, gates = chosen(logits, k)
    routing = adapter.route(logits, k) if made == "route" else adapter.routed(ids.int(), gates.float(), experts)
    right = adapter.matmul(x, weight, out_dtype=torch.float32, routing=routing, gather=True)
    for table in _block_maps(routing.native):
        table[table == 2] = 3  # the first block of expert 2 becomes one of expert 3
    with WatchedAllocation(GuardedMemory(torch.device("cpu"))):  # what is not written is NaN
        wrong = adapter.matmul(x, weight, out_dtype=torch.float32, routing=routing, gather=True)
    rows = torch.repeat_interleave(torch.arange(experts), routing.histogram.long()) == 2
    assert torch.equal(right[~rows], wrong[~rows]) and bool(wrong[rows].isnan().all())


def _block_maps(native: Any) -> list[torch.Tensor]:
    """The library's own tensors of the block map of each block size."""
    data = native[0].expt_data if isinstance(native, tuple) else native.metadata
    return list(data.block_pid_map.values()) if hasattr(data, "block_pid_map") else list(data.block_schedule_data)
