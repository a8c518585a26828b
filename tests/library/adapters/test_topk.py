"""What every adapter's top-k and routing must do, against plain torch in float64."""

from __future__ import annotations

import pytest
import torch

from gpucheck.library.adapters.base import Adapter, Routing
from gpucheck.model.errors import Inapplicable


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


def route_by(experts: torch.Tensor, count: int) -> Routing:
    """Routing of (T, k) expert ids whose rows ascend, with gates of 1."""
    flat = experts.flatten()
    to_flat = torch.argsort(flat, stable=True).to(torch.int32)
    to_sorted = torch.empty_like(to_flat)
    to_sorted[to_flat.long()] = torch.arange(flat.numel(), dtype=torch.int32)
    gates = torch.ones(flat.numel())
    histogram = torch.bincount(flat, minlength=count).to(torch.int32)
    return Routing(histogram, to_flat, to_sorted, gates, count, experts.shape[1])


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
