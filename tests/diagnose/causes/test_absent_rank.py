"""A joint case without end: a rank that did not come is told from a call to which all had come."""

from __future__ import annotations

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.record import Outcome, Progress
from gpucheck.worker.collective_journal import CollectiveCall
from gpucheck.worker.supervisor.blame import RAN, WAITED, RankState, blame, progress
from tests.conftest import Synthetic


def cause(synthetic: Synthetic, device: str, states: dict[int, RankState]) -> tuple[str, list[int]]:
    """Cause and ranks of the finding that fails, as the supervisors of two ranks would record it."""
    blamed = blame(states)
    told: list[Progress] = progress(states.values())
    ends = {
        (0, rank): {"outcome": Outcome.HANG, "message": blamed.reasons[rank], "progress": told}
        if rank in blamed.reasons
        else {"outcome": Outcome.HARNESS, "victim_of": min(blamed.reasons), "progress": told}
        for rank in states
    }
    plan = synthetic.plan(cases=1, ranks=2, under=[Conditions(process_group=TOGETHER)], device=device)
    (finding,) = (each for each in conclude(synthetic.run(plan, ends)).findings if each.fails)
    return finding.cause, finding.ranks


def call(number: int, *, inside: bool) -> CollectiveCall:
    return CollectiveCall("all_reduce", "all_reduce int32 x4 sum", (0, 1), "all", number, inside)


@pytest.mark.parametrize(("device", "inside"), [("cpu", True), ("cuda", True), ("cuda", False)])
def test_a_call_that_all_ranks_came_to_is_at_fault(synthetic: Synthetic, device: str, inside: bool) -> None:
    """NCCL's calls return at once: no rank is in one, and each waits for its GPU."""
    states = {rank: RankState(rank, WAITED, "", (call(1, inside=inside),)) for rank in (0, 1)}
    assert cause(synthetic, device, states) == ("collective call without end", [0, 1])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_rank_that_others_are_ahead_of_is_at_fault(synthetic: Synthetic, device: str) -> None:
    ahead = (call(1, inside=False), call(2, inside=device == "cpu"))
    states = {0: RankState(0, WAITED, "", ahead), 1: RankState(1, WAITED, "", ahead[:1])}
    assert cause(synthetic, device, states) == ("absent rank", [1])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_rank_that_hangs_behind_all_calls_is_at_fault(synthetic: Synthetic, device: str) -> None:
    states = {0: RankState(0, RAN, "", (call(1, inside=False),)), 1: RankState(1, WAITED, "", (call(1, inside=False),))}
    assert cause(synthetic, device, states) == ("absent rank", [1])
