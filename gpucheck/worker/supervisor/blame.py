"""Who is to blame where a case that ranks run together does not end: read off how far each of them came."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gpucheck.diagnose.wording import rank_list
from gpucheck.model.record import Progress
from gpucheck.worker.collective_journal import CollectiveCall

RAN, RAISED, CRASHED, STOPPED, WAITED, GONE, UNREADY = (
    "ran",
    "raised",
    "crashed",
    "stopped",
    "waited",
    "gone",
    "never ready",
)
"""How a rank ended: with its outputs, with an error, dead, stopped by a signal, killed while it was at work, without a
supervisor, or without a process."""
DEAD = (CRASHED, STOPPED, GONE, UNREADY)
GAVE_UP = re.compile(
    r"ncclRemoteError|remote process exited|operation timeout|timed out waiting|[Cc]onnection (closed|reset) by peer"
)
"""What a rank says that ended since another one did not answer: NCCL ends a process, or raises, after some time."""
MOST_CALLS = 5000  # that a rank tells the others of


@dataclass(frozen=True)
class RankState:
    """How a joint case ended on one rank, as its supervisor tells the others."""

    rank: int
    state: str
    message: str = ""
    calls: tuple[CollectiveCall, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The plain form."""
        return {**asdict(self), "calls": [list(vars(call).values()) for call in self.calls[-MOST_CALLS:]]}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> RankState:
        """The state that :meth:`to_json` wrote."""
        calls = ((op, told, tuple(ranks), *rest) for op, told, ranks, *rest in item["calls"])
        return cls(item["rank"], item["state"], item["message"], tuple(CollectiveCall(*call) for call in calls))

    @property
    def inside(self) -> list[CollectiveCall]:
        """The calls that it is in: the last one, and those that it has not waited for."""
        return [call for call in self.calls if call.inside]


@dataclass(frozen=True)
class Blame:
    """The ranks whose fault it is that a joint case did not end, or that ranks called different things."""

    reasons: dict[int, str] = field(default_factory=dict)  # rank -> what it did
    mismatch: tuple[str, int] | None = None  # channel and number of the first call in which ranks differ

    def __bool__(self) -> bool:
        return bool(self.reasons)


def blame(states: Mapping[int, RankState]) -> Blame:
    """Who is to blame; nobody where all ranks ran and called the same things.

    In this order: ranks that called something else than most, which may well end the process of another one; ranks
    whose process died or was stopped, unless NCCL ended it since another one was gone or late; ranks that raised
    outside of all calls; ranks that others wait for in a call while they themselves wait for nobody; ranks that raised
    within a call, or that NCCL ended; all that did not end.
    """
    if differing := first_mismatch(states):
        return differing
    dead = {rank: state.message or state.state for rank, state in states.items() if state.state in DEAD}
    if own := {rank: message for rank, message in dead.items() if not GAVE_UP.search(message)}:
        return Blame(own)
    if all(state.state == RAN for state in states.values()):
        return Blame()
    raised = {rank: state.message for rank, state in states.items() if state.state == RAISED}
    outside = {rank: m for rank, m in raised.items() if not states[rank].inside and not GAVE_UP.search(m)}
    return Blame(outside or _absent(states) or raised or dead or _stuck(states))


def first_mismatch(states: Mapping[int, RankState]) -> Blame | None:
    """The ranks that called something else than most did as the same call of a group; both where it is a draw."""
    seen: dict[tuple[str, int], dict[int, CollectiveCall]] = {}
    for state in states.values():
        for call in state.calls:
            seen.setdefault((call.channel, call.number), {})[state.rank] = call
    for place, calls in seen.items():
        often = Counter(call.signature for call in calls.values())
        if len(often) < 2:
            continue
        most = max(often.values())
        usual = [told for told, count in often.items() if count == most]
        odd = [rank for rank, call in calls.items() if len(usual) > 1 or call.signature != usual[0]]
        told = "; ".join(f"{rank_list(_who(calls, words))}: {words}" for words in often)
        words = f"ranks differ in call {place[1]} of {_group(next(iter(calls.values())))}: {told}"
        return Blame(dict.fromkeys(odd, words), place)
    return None


def _who(calls: Mapping[int, CollectiveCall], signature: str) -> list[int]:
    return [rank for rank, call in calls.items() if call.signature == signature]


def _absent(states: Mapping[int, RankState]) -> dict[int, str]:
    """The ranks that others wait for in a call, and that wait for nobody who has not come."""
    counts = {rank: Counter(call.channel for call in state.calls) for rank, state in states.items()}
    missing: dict[int, tuple[CollectiveCall, list[int]]] = {}  # rank -> call that it did not come to, who is there
    awaited: dict[int, set[int]] = {}
    for rank, state in states.items():
        last = {call.channel: call for call in state.calls}
        for call in last.values():
            late = [other for other in call.members if other != rank and counts[other][call.channel] < call.number]
            for other in late:
                known, there = missing.setdefault(other, (_first_beyond(state, call, counts[other][call.channel]), []))
                if known.channel == call.channel:
                    there.append(rank)
            if call in state.inside:
                awaited.setdefault(rank, set()).update(late)
    unended = {rank: held for rank, held in missing.items() if states[rank].state != RAN}
    first = {rank: held for rank, held in unended.items() if not awaited.get(rank, set()) & unended.keys()}
    return {
        rank: f"did not come to {_call(call)}, where {rank_list(there)} waited" + _where(states[rank])
        for rank, (call, there) in (first or unended).items()
    }


def _first_beyond(state: RankState, last: CollectiveCall, count: int) -> CollectiveCall:
    """The first call of a channel behind so many; calls on a GPU return at once, so ranks may be far ahead of one."""
    return next((c for c in state.calls if c.channel == last.channel and c.number > count), last)


def _where(state: RankState) -> str:
    last = state.calls[-1] if state.calls else None
    if last is None:
        return "; it had come to no call"
    return f"; it was {'in' if last.inside else 'past'} {_call(last)}"


def _stuck(states: Mapping[int, RankState]) -> dict[int, str]:
    """The ranks that are in a call to which all of its ranks came, or in none; of those, whoever did not end."""
    return {rank: _stuck_words(state) for rank, state in states.items() if state.state == WAITED}


def _stuck_words(state: RankState) -> str:
    if state.inside:
        return f"{_call(state.inside[-1])} did not end, though all of its ranks had come"
    if state.calls:
        return f"did not end after {_call(state.calls[-1])}, to which all of its ranks had come"
    return "did not end, and had come to no collective call"


def _call(call: CollectiveCall) -> str:
    return f"{call.operation} number {call.number} of {_group(call)}"


def _group(call: CollectiveCall) -> str:
    if ">" in call.channel:
        return f"rank {call.members[0]} to rank {call.members[1]}"
    return rank_list(call.members)


def progress(states: Iterable[RankState], place: tuple[str, int] | None = None) -> list[Progress]:
    """How far each rank came.

    Args:
        place: channel and number of the call to tell of; None: the last one that each rank came to.
    """
    told = []
    for state in states:
        calls = [call for call in state.calls if place is None or (call.channel, call.number) == place]
        if not calls:
            told.append(Progress(state.rank, state.state, message=state.message))
            continue
        call = next((each for each in calls if each.inside), calls[-1])
        told.append(
            Progress(
                state.rank,
                state.state,
                call.operation,
                call.signature,
                [*call.members],
                call.number,
                call.inside,
                state.message,
            )
        )
    return told
