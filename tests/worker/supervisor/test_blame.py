"""Who is to blame where a joint case does not end: the rank at fault, and never one that waited for it."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from gpucheck.worker.collective_journal import CollectiveCall
from gpucheck.worker.supervisor import blame as module
from gpucheck.worker.supervisor.blame import (
    CRASHED,
    GONE,
    RAISED,
    RAN,
    STOPPED,
    UNREADY,
    WAITED,
    RankState,
    blame,
    progress,
)

PROGRAM = (("all_reduce", "all"), ("all_gather", "all"), ("send", "pair"), ("broadcast", "all"), ("all_reduce", "half"))
FRESH = 200  # programs drawn


def call(operation: str, channel: str, members: Sequence[int], number: int, *, inside: bool = False) -> CollectiveCall:
    return CollectiveCall(operation, f"{operation} x4", tuple(members), channel, number, inside)


def members_of(kind: str, ranks: int, draw: random.Random) -> tuple[str, tuple[int, ...]]:
    """The channel and ranks of one call of a program."""
    if kind == "all":
        return "all", tuple(range(ranks))
    if kind == "half":
        return "even", tuple(range(0, ranks, 2))
    a, b = draw.sample(range(ranks), 2)
    return f"all {a}>{b}", (a, b)


def simulate(ranks: int, culprit: int, state: str, seed: int) -> dict[int, RankState]:
    """What each rank's journal holds when one rank stops before a call of a random program and the others go on."""
    draw = random.Random(seed)
    program = [(name, *members_of(kind, ranks, draw)) for name, kind in draw.choices(PROGRAM, k=12)]
    stops = draw.choice([n for n, (_, _, members) in enumerate(program) if culprit in members] or [0])
    stuck: dict[int, int] = {culprit: stops}
    for number, (_, _, members) in enumerate(program):  # who meets a rank that is stuck before, is stuck in the call
        if any(stuck.get(rank, 99) <= number for rank in members):
            for rank in members:
                stuck.setdefault(rank, number)
    states = {}
    for rank in range(ranks):
        calls, counts = [], Counter[str]()
        for number, (name, channel, members) in enumerate(program):
            if rank not in members or number > stuck.get(rank, 99) or (rank == culprit and number >= stops):
                continue
            counts[channel] += 1
            calls.append(call(name, channel, members, counts[channel], inside=number == stuck.get(rank, 99)))
        ended = state if rank == culprit else WAITED if rank in stuck else RAN
        states[rank] = RankState(rank, ended, "", tuple(calls))
    return states


@pytest.mark.parametrize("state", [WAITED, RAISED, CRASHED, STOPPED, GONE, UNREADY])
def test_the_rank_at_fault_is_blamed_and_no_other(state: str) -> None:
    first = int(os.environ["GPUCHECK_TEST_SEED"])
    for seed in range(first, first + FRESH):
        ranks = 2 + seed % 7
        culprit = seed // 7 % ranks
        states = simulate(ranks, culprit, state, seed)
        if all(each.state == RAN for rank, each in states.items() if rank != culprit) and state == WAITED:
            continue  # nobody met it again
        assert list(blame(states).reasons) == [culprit], (seed, states)


def test_nobody_is_to_blame_where_all_ran() -> None:
    states = {rank: RankState(rank, RAN, "", (call("all_reduce", "all", (0, 1), 1),)) for rank in (0, 1)}
    assert not blame(states)


def test_a_call_that_does_not_end_is_the_fault_of_all_that_are_in_it() -> None:
    inside = (call("all_reduce", "all", (0, 1, 2), 1, inside=True),)
    found = blame({rank: RankState(rank, WAITED, "", inside) for rank in range(3)})
    assert list(found.reasons) == [0, 1, 2]
    assert found.reasons[0] == "all_reduce number 1 of ranks 0-2 did not end, though all of its ranks had come"


def test_a_rank_that_hangs_behind_its_last_call_is_blamed_alone() -> None:
    done = (call("barrier", "all", (0, 1), 1),)
    found = blame({0: RankState(0, RAN, "", done), 1: RankState(1, WAITED, "", done)})
    assert found.reasons == {1: "did not end after barrier number 1 of ranks 0, 1, to which all of its ranks had come"}
    assert blame({0: RankState(0, RAN), 1: RankState(1, WAITED)}).reasons == {
        1: "did not end, and had come to no collective call"
    }


def test_where_calls_return_at_once_the_first_that_a_rank_did_not_come_to_is_named() -> None:
    """As with NCCL: the host of a rank is past calls that its GPU waits in."""
    ahead = tuple(call("all_reduce", "all", (0, 1, 2), number) for number in (1, 2, 3))
    states = {
        0: RankState(0, WAITED, "", ahead),
        1: RankState(1, WAITED, "", ahead[:1]),
        2: RankState(2, WAITED, "", ahead),
    }
    assert blame(states).reasons == {
        1: "did not come to all_reduce number 2 of ranks 0-2, where ranks 0, 2 waited; "
        "it was past all_reduce number 1 of ranks 0-2"
    }


NCCL = {
    "ended": (CRASHED, "was killed by SIGABRT; Watchdog caught collective operation timeout: WorkNCCL(SeqNum=2)"),
    "raised": (RAISED, "DistBackendError: NCCL error in: x.cpp:1; ncclRemoteError: remote process exited"),
}


@pytest.mark.parametrize("how", NCCL)
@pytest.mark.parametrize("culprit", [CRASHED, WAITED, GONE])
def test_a_rank_that_nccl_ends_since_another_one_is_gone_is_no_culprit(how: str, culprit: str) -> None:
    ahead = tuple(call("all_reduce", "all", (0, 1), number) for number in (1, 2))
    state, message = NCCL[how]
    states = {0: RankState(0, state, message, ahead), 1: RankState(1, culprit, "killed by SIGKILL", ahead[:1])}
    assert list(blame(states).reasons) == [1]


def test_errors_of_nccl_that_nobody_else_explains_are_those_of_all_who_have_them() -> None:
    both = tuple(call("all_reduce", "all", (0, 1), number) for number in (1, 2))
    for state, message in NCCL.values():
        found = blame({rank: RankState(rank, state, message, both) for rank in (0, 1)})
        assert found.reasons == {0: message, 1: message}


@pytest.mark.parametrize("state", [WAITED, RAISED, CRASHED, RAN])
def test_the_rank_that_called_something_else_than_most_is_blamed(state: str) -> None:
    usual, odd = CollectiveCall("all_reduce", "all_reduce x8 sum", (0, 1, 2), "all", 2), "all_reduce x7 sum"
    states = {rank: RankState(rank, state, "", (usual,)) for rank in (0, 2)}
    states[1] = RankState(1, WAITED, "", (CollectiveCall("all_reduce", odd, (0, 1, 2), "all", 2),))
    found = blame(states)
    assert list(found.reasons) == [1] and found.mismatch == ("all", 2)
    assert "ranks 0, 2: all_reduce x8 sum" in found.reasons[1] and f"rank 1: {odd}" in found.reasons[1]
    assert [part.signature for part in progress(states.values(), found.mismatch)] == [usual.signature] * 2 + [odd]


def test_of_two_ranks_that_differ_both_are_named() -> None:
    calls = [CollectiveCall("all_reduce", f"all_reduce x{n}", (0, 1), "all", 1) for n in (4, 5)]
    assert list(blame({rank: RankState(rank, WAITED, "", (calls[rank],)) for rank in (0, 1)}).reasons) == [0, 1]


def test_an_error_outside_of_calls_comes_before_the_errors_that_it_causes_within_them() -> None:
    inside = (call("all_reduce", "all", (0, 1, 2), 1, inside=True),)
    states = {0: RankState(0, RAISED, "connection closed by peer", inside), 1: RankState(1, RAISED, "no such buffer")}
    assert blame({**states, 2: RankState(2, WAITED, "", inside)}).reasons == {1: "no such buffer"}
    pair = (call("all_reduce", "all", (0, 2), 1, inside=True),)
    assert list(blame({0: RankState(0, RAISED, "NCCL error", pair), 2: RankState(2, WAITED, "", pair)}).reasons) == [0]


def test_a_state_is_read_as_it_was_written() -> None:
    state = RankState(1, CRASHED, "died", (call("send", "all 0>1", (0, 1), 3, inside=True),))
    assert RankState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_a_rank_tells_of_its_last_calls_where_they_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CALLS", 2)
    calls = tuple(call("barrier", "all", (0, 1), number) for number in range(1, 6))
    assert [each.number for each in RankState.from_json(RankState(0, RAN, "", calls).to_json()).calls] == [4, 5]
