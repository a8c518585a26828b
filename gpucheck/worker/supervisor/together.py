"""What came of a joint case on one rank, once it is known how it ended on all: its own fault, or another rank's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gpucheck.model.record import Outcome
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.worker.supervisor.attempt import Attempt, ended, remove_outputs
from gpucheck.worker.supervisor.blame import RAISED, RAN, WAITED, Blame, RankState, blame, progress


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
