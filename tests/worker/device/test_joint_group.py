"""How ranks that run a joint case agree on further passes, and what a torch without a backend says."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from gpucheck.model.errors import Inapplicable
from gpucheck.worker import collective_journal
from gpucheck.worker.collective_journal import CollectiveJournal
from gpucheck.worker.device import collective_observer
from gpucheck.worker.device.joint_group import AGREEMENT, Agreements, JointGroup

RANKS = 3


@pytest.fixture
def ranks(tmp_path: Path) -> list[Agreements]:
    store: Any = distributed.HashStore()  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=60))
    return [Agreements(store, rank, RANKS, CollectiveJournal(tmp_path / str(rank))) for rank in range(RANKS)]


def all_at_once(ranks: list[Agreements], ask: Callable[[Agreements, int], Any]) -> list[Any]:
    with ThreadPoolExecutor(RANKS) as threads:
        return [each.result() for each in [threads.submit(ask, rank, n) for n, rank in enumerate(ranks)]]


def test_one_wish_is_enough_and_each_question_stands_by_itself(ranks: list[Agreements]) -> None:
    wishes = [(False, False, False), (False, True, False), (True, True, True), (False, False, False)]
    for each in wishes:
        assert all_at_once(ranks, lambda rank, n, each=each: rank.agree(each[n])) == [any(each)] * RANKS
    assert all_at_once(ranks, lambda rank, n: rank.largest(n / 7)) == [2 / 7] * RANKS


def test_a_rank_that_does_not_answer_is_seen_in_the_journals_of_those_that_wait(
    ranks: list[Agreements], tmp_path: Path
) -> None:
    all_at_once(ranks, lambda rank, n: rank.agree(False))
    with ranks[0]._place():
        (first, second) = collective_journal.read(tmp_path / "0")
        assert not first.inside and second.inside
        assert (second.operation, second.number, second.members) == (AGREEMENT, 2, (0, 1, 2))
    assert len(collective_journal.read(tmp_path / "1")) == 1


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:0", "nccl")])
def test_a_torch_without_the_backend_runs_nothing_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, backend: str
) -> None:
    monkeypatch.setattr(collective_observer.CollectiveObserver, "install", lambda self: None)
    monkeypatch.setattr(distributed, f"is_{backend}_available", lambda: False)
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(Inapplicable, match=f"without {backend}"):
        JointGroup(tmp_path / "journal", one_node=True).enter("1", torch.device(device), 5.0)
