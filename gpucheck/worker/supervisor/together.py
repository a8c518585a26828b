"""Joint cases on one rank: its part of each, and what came of it once it is known how the case ended on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.model.record import Outcome
from gpucheck.model.vocabulary import ViolationKind, file_name
from gpucheck.worker import collective_journal
from gpucheck.worker.supervisor.attempt import Attempt, ended, harness_failed, remove_outputs
from gpucheck.worker.supervisor.blame import (
    CRASHED,
    GAVE_UP,
    RAISED,
    RAN,
    WAITED,
    Blame,
    RankState,
    blame,
    progress,
)
from gpucheck.worker.supervisor.board import Board, NoStore
from gpucheck.worker.supervisor.child_setup import of_round
from gpucheck.worker.supervisor.meeting import Absent, Meeting, absent_states

if TYPE_CHECKING:
    from gpucheck.worker.supervisor.child_runner import ChildRunner


class Together:
    """Runs this rank's part of joint cases; a rank that fails costs one case and its group, and no more."""

    def __init__(self, runner: ChildRunner) -> None:
        self._runner = runner
        self._board: Board | None = None  # where all ranks meet, once a joint case asks for it
        self._met: dict[str, int] = {}  # meeting -> times this rank was there

    def board(self) -> Board:
        """The board of the run, made by the first joint case."""
        if self._board is None:
            runner = self._runner
            self._board = Board(runner.node, runner.rank, runner.plan.world_size, runner.run_folder / "records")
        return self._board

    def agree(self, name: str, wish: bool) -> bool:
        """Gives all ranks that run cases together one answer: on one node the first wish, on several that of rank 0."""
        plan = self._runner.plan
        if plan.nnodes == 1 or not any(step.together and not step.inapplicable for step in plan.steps):
            return self._runner.node.vote(name, wish)
        told = self.board().gather(name, wish)
        return bool(told[0]) if told else False

    def run(self, attempt: Attempt) -> Attempt:
        """This rank's attempt of a joint case, which all ranks begin together and end together."""
        runner, child = self._runner, self._runner.child
        done, inputs = attempt, None
        try:
            meeting = Meeting(self.board(), self._meeting_name(attempt))
            if not self.board().gone():
                done, inputs = runner.prepared(attempt)
            group = meeting.arrive(child.group if inputs else "", "" if inputs else done.record.message)
            if group is None:
                if child.group:
                    child.retire()
                    done, inputs = runner.prepared(attempt)
                group = meeting.arrive("", "" if inputs else done.record.message)
            assert group is not None, "all come without a group"
            if isinstance(group, Absent):
                return attributed(done, absent_states(group, runner.plan.world_size))
            assert inputs is not None, "without a child this rank is absent"
            done = self._part(done, inputs, meeting)
            calls = tuple(collective_journal.read(runner.setups.path("collectives")))
            states = meeting.end(RankState(runner.rank, *_state(done), calls), runner.deadline(done))
        except NoStore as error:
            child.retire()
            return harness_failed(replace(done, reply=None), error)
        done = attributed(done, states)
        if done.record.progress:
            child.retire()
        return done

    def _meeting_name(self, attempt: Attempt) -> str:
        """What all ranks call the attempt: the one of the case, or so many more of an experiment."""
        record = attempt.record
        name = f"{of_round(record.step, record.round)}{file_name(record.experiment)}"
        self._met[name] = self._met.get(name, 0) + 1
        return f"{name}.{self._met[name]}"

    def _part(self, attempt: Attempt, inputs: Path, meeting: Meeting) -> Attempt:
        """This rank's part of a joint case; whatever goes wrong here, the other ranks are told of it."""
        try:
            collective_journal.clear(self._runner.setups.path("collectives"))
            done, replies = self._runner.execute(attempt, inputs, [attempt.outputs], meeting)
        except NoStore:
            raise
        except Exception as error:
            self._runner.child.retire()
            return harness_failed(attempt, error)
        return replace(done, reply=replies[0] if replies else None)


def _state(attempt: Attempt) -> tuple[str, str]:
    """How a joint case ended on this rank, and what there is to say of it."""
    reply, record = attempt.reply, attempt.record
    if reply is None:
        gave_up = next((line for line in record.said if GAVE_UP.search(line)), "")
        return attempt.state or CRASHED, _joined(record.message, gave_up)
    broken = reply.status in ("error", "harness")
    return (CRASHED if reply.sticky else RAISED) if broken else RAN, reply.message if broken else ""


def attributed(attempt: Attempt, states: Mapping[int, RankState]) -> Attempt:
    """The attempt of one rank as its own failure, as a victim of another rank, or as it is where all is well.

    Args:
        states: of all ranks.
    """
    blamed = blame(states)
    if not blamed:
        return attempt
    rank = attempt.record.rank
    told = progress(states.values(), blamed.mismatch)
    attempt = replace(attempt, record=replace(attempt.record, progress=told))
    return _guilty(attempt, states[rank], blamed) if rank in blamed.reasons else _victim(attempt, blamed)


def _guilty(attempt: Attempt, own: RankState, blamed: Blame) -> Attempt:
    record, reason = attempt.record, blamed.reasons[own.rank]
    if own.state == RAN and attempt.reply is not None:
        attempt.reply.blamed.append((ViolationKind.GROUP, reason))
        return attempt
    if own.state == RAISED:
        return attempt
    if own.state == WAITED:
        return ended(attempt, Outcome.HANG, _joined(reason, record.message), record.traceback)
    return attempt


def _victim(attempt: Attempt, blamed: Blame) -> Attempt:
    remove_outputs(attempt)
    first = min(blamed.reasons)
    words = f"it ran this case with rank {first}: {blamed.reasons[first]}"
    victim = ended(replace(attempt, reply=None), Outcome.HARNESS, words)
    return replace(victim, record=replace(victim.record, victim_of=first))


def _joined(*words: str) -> str:
    return "; ".join(filter(None, words))
