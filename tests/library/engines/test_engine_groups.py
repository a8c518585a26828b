"""What an engine's groups of ranks say of the rank whose part is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.library.engines.base import Facts, Sizes, place_in_group

SIZES = {"hidden": 256, "intermediate": 128, "experts": 4, "top_k": 2}


def group() -> Any:
    """As engines have it in a process of its own: a group of one rank, the first of its world."""

    def all_reduce(part: str) -> str:
        raise AssertionError("nobody else is there")

    return SimpleNamespace(rank=0, ranks=[0], rank_in_group=0, world_size=1, all_reduce=all_reduce)


@pytest.mark.parametrize("rank", range(2))
def test_a_group_names_the_same_rank_in_each_of_its_fields(rank: int) -> None:
    """vLLM up to 0.20 cuts the experts by ``rank`` and maps them by ``rank_in_group``, later both by the latter."""
    state, facts = SimpleNamespace(_TP=group(), _EP=group()), Facts()
    with place_in_group(state, ("_TP", "_EP"), Sizes(**SIZES, ep=2, rank=rank), facts):
        for told in (state._TP, state._EP):
            assert (told.rank, told.rank_in_group, told.ranks, told.world_size) == (rank, rank, [0, 1], 2)
            assert told.ranks[told.rank_in_group] == told.rank
            assert told.all_reduce("part") == "part"
    assert (state._TP.world_size, state._EP.rank, state._EP.ranks) == (1, 0, [0])
    assert "told that it has 2" in facts.group


def test_a_rank_that_shares_with_nobody_keeps_its_groups() -> None:
    state, facts = SimpleNamespace(_TP=group()), Facts()
    held = state._TP
    with place_in_group(state, ("_TP",), Sizes(**SIZES), facts):
        assert state._TP is held
    assert not facts.group
