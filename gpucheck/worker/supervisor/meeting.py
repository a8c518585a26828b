"""One joint case as a rank's supervisor goes through it with all others: they begin it together and end it together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

from gpucheck.worker.supervisor.blame import GONE, RAN, UNREADY, RankState
from gpucheck.worker.supervisor.board import POLL, Board
from gpucheck.worker.supervisor.deadline import MOST_STARVED, Deadline

if TYPE_CHECKING:
    from gpucheck.host.forkserver import Child

GRACE = 3.0  # s that a child has to raise by itself once another rank has failed
GLANCE = 0.05  # s between two looks at the board while the child works
ENDING = 120.0  # s that a rank may take to end its child and say so


class Waited(Enum):
    """How the wait for a child ended that did not answer."""

    OVERDUE = "overdue"  # on all ranks that had not ended
    FREED = "freed"  # since another rank failed
    STOPPED = "stopped"  # by a signal


@dataclass(frozen=True)
class Absent:
    """Ranks that cannot take part, each with why."""

    reasons: dict[int, str]


class Meeting:
    """The exchange about one attempt of a joint case; every rank that is there gives it the same name."""

    def __init__(self, board: Board, name: str) -> None:
        self.board, self.name = board, name
        self.group = ""  # that the children of all ranks go on in, once they have arrived
        self._settled = False  # this rank has ended or is overdue
        self._arrivals = 0

    def arrive(self, group: str, problem: str) -> str | Absent | None:
        """Waits for all ranks and returns the name of the group to go on in.

        None: some children are in a group that others are not in. These are of no use, since a group that lost a rank
        may keep those that leave it waiting: each rank arrives once more, with a child that is in no group.

        Args:
            group: that the child of this rank is in; "": in none.
            problem: why this rank has no child; "": it has one.
        """
        self._arrivals += 1
        place = f"{self.name}/arrived {self._arrivals}"
        self.board.post(place, {"group": group, "problem": problem})
        came = self.board.came(place)
        reasons = {rank: "its supervisor has ended" for rank in range(self.board.ranks) if rank not in came}
        reasons |= {rank: said["problem"] for rank, said in came.items() if said["problem"]}
        if reasons:
            return Absent(reasons)
        groups = {said["group"] for said in came.values()}
        if len(groups) > 1:
            return None
        self.group = groups.pop() or self.name
        return self.group

    def wait(self, child: Child, deadline: float) -> Waited | Literal[True]:
        """Waits for the answer of a child, True, as long as the ranks together may take for it.

        A rank that is overdue waits until all others are, or have ended: a child that gets no processor keeps all
        others waiting, and that is no hang.
        """
        overdue, freed, looked = Deadline(child.pid, deadline), None, 0.0
        while not child.connection.poll(POLL if freed is None else GLANCE):
            now = time.monotonic()
            if overdue.stopped():
                return Waited.STOPPED
            if now - looked < GLANCE:
                continue
            looked = now
            if freed is None and self._failed_elsewhere():
                freed = now
            if freed is not None and now - freed > GRACE:
                return Waited.FREED
            if overdue.left < 0:
                self._settle()
                if overdue.past or self._all_settled():
                    return Waited.OVERDUE
        return True

    def _failed_elsewhere(self) -> bool:
        return bool(self.board.count(f"{self.name}/failed")) or bool(self.board.gone())

    def _settle(self) -> None:
        if not self._settled:
            self._settled = True
            self.board.count(f"{self.name}/settled", 1)

    def _all_settled(self) -> bool:
        return self.board.count(f"{self.name}/settled") + len(self.board.gone()) >= self.board.ranks

    def failed(self) -> None:
        """Says that this rank failed, as soon as it is known: nobody waits for it in vain."""
        self.board.count(f"{self.name}/failed", 1)

    def end(self, state: RankState, seconds: float) -> dict[int, RankState]:
        """Tells how this rank ended and waits for all others, those that are gone left out.

        Args:
            seconds: that the case may take.
        """
        if state.state != RAN:
            self.failed()
        self.board.post(f"{self.name}/ended", state.to_json())
        self._settle()
        told = self.board.came(f"{self.name}/ended", (1 + MOST_STARVED) * seconds + ENDING)
        states = {rank: RankState.from_json(item) for rank, item in told.items()}
        for rank in range(self.board.ranks):
            states.setdefault(rank, RankState(rank, GONE, "its supervisor has ended"))
        return dict(sorted(states.items()))


def absent_states(absent: Absent, ranks: int) -> dict[int, RankState]:
    """The states of all ranks where some cannot take part, so that none began."""
    return {
        rank: RankState(rank, UNREADY, absent.reasons[rank]) if rank in absent.reasons else RankState(rank, RAN)
        for rank in range(ranks)
    }
