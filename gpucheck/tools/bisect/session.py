"""A search at work: runs candidates as often as they need, keeps what was seen, and says what they are."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.tools.bisect.observation import Look
from gpucheck.tools.bisect.observation import State as CaseState
from gpucheck.tools.bisect.repeats import Rate, enough, estimate
from gpucheck.tools.bisect.run_once import Prepared
from gpucheck.tools.bisect.saved_search import State
from gpucheck.tools.bisect.signature import Answer, Seen, Signature
from gpucheck.tools.bisect.sources.base import Candidate, Unbuildable
from gpucheck.tools.bisect.target import Target

ATTEMPTS = 2  # runs without an answer before a candidate is given up

Take = Callable[[Target, Prepared, Path], Look]
"""Makes one run; see :func:`gpucheck.tools.bisect.run_once.take`."""


class Listener(Protocol):
    """Who is told how a search goes on."""

    def running(self, candidate: Candidate, number: int) -> None:
        """A candidate is about to be run for the ``number``-th time."""

    def decided(self, candidate: Candidate, answer: Answer, words: str) -> None:
        """It is known what a candidate is."""


@dataclass(frozen=True)
class Verified:
    """What the bad end says: what to search for, and how often a candidate must pass without it."""

    signature: Signature
    rate: Rate


class Session:
    """Asks candidates; every answer rests on runs that are in the state."""

    def __init__(self, state: State, take: Take, listener: Listener) -> None:
        self.state, self._take, self._listener = state, take, listener
        self._told: set[str] = set()

    def verify_bad(self, candidate: Candidate) -> Verified:
        """Runs the bad end until it is known what it shows and how often.

        Raises:
            UsageError: it does not show a failure, or not the one of the stored run, or cannot be tried.
            InfrastructureError: its runs give no answer.
        """
        self._look(candidate, self._end_is_known)
        looks = self.state.of(candidate)
        signature = self._signature(looks)
        seen = Counter(signature.seen(look) for look in looks) if signature else Counter()
        if signature is None or not seen[Seen.BAD]:
            raise self._not_bad(candidate, looks, signature)
        failed, runs = seen[Seen.BAD], len(looks) - seen[Seen.BROKEN]
        if self.state.bits and failed < runs:
            raise UsageError(f"the outputs of {candidate.name} differ from run to run: their bits tell nothing")
        rate = Rate(failed, runs, self.state.repeat) if self.state.repeat else estimate(failed, runs)
        self._tell(candidate, Answer.BAD, _tally(looks, signature))
        return Verified(signature, rate)

    def verify_good(self, candidate: Candidate, verified: Verified) -> None:
        """Makes sure that the good end is good.

        Raises:
            UsageError: it is not, or cannot be tried.
            InfrastructureError: its runs give no answer.
        """
        answer = self.ask(candidate, verified)
        if answer is Answer.GOOD:
            return
        looks = self.state.of(candidate)
        what = f"the good end {candidate.name}"
        if answer is Answer.BAD:
            raise UsageError(
                f"{what} shows what is searched for: {verified.signature.words}.\n"
                f"  seen  {_tally(looks)}\n  try   an end that lies further away"
            )
        raise _unusable(what, looks)

    def ask(self, candidate: Candidate, verified: Verified) -> Answer:
        """What a candidate is, from as many runs as it takes."""
        signature, passes = verified.signature, verified.rate.passes

        def answer(looks: Sequence[Look]) -> Answer | None:
            return decide([signature.seen(look) for look in looks], passes)

        self._look(candidate, lambda looks: answer(looks) is not None)
        looks = self.state.of(candidate)
        found = answer(looks)
        assert found is not None
        self._tell(candidate, found, _tally(looks, signature))
        return found

    def _look(self, candidate: Candidate, settled: Callable[[Sequence[Look]], bool]) -> None:
        """Runs a candidate until what was seen settles it; each run is saved."""
        looks = self.state.of(candidate)
        with ExitStack() as stack:
            prepared: Prepared | None = None
            while not settled(looks):
                self._listener.running(candidate, len(looks) + 1)
                try:
                    prepared = prepared or stack.enter_context(self.state.source.prepared(candidate, self.state.work))
                except Unbuildable as reason:
                    looks.append(Look(CaseState.UNBUILDABLE, self.state.target.label, reason=str(reason)))
                else:
                    looks.append(self._take(self.state.target, prepared, self._folder()))
                self._settle_on(looks[-1])
                self.state.save()

    def _settle_on(self, look: Look) -> None:
        """From the first case that shows something on, that case is looked at."""
        telling = CaseState.PASSED if self.state.bits else CaseState.FAILED
        if not self.state.target.label and look.state is telling:
            self.state.target = replace(self.state.target, label=look.case)

    def _folder(self) -> Path:
        """Where the next run goes; what an interrupted one left there is removed."""
        folder = self.state.work / "runs" / f"{self.state.runs + 1:04d}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _end_is_known(self, looks: Sequence[Look]) -> bool:
        broken = sum(look.state is CaseState.BROKEN for look in looks)
        if broken >= ATTEMPTS or any(look.state is CaseState.UNBUILDABLE for look in looks):
            return True
        signature = self._signature(looks)
        failed = sum(signature is not None and signature.seen(look) is Seen.BAD for look in looks)
        runs = len(looks) - broken
        if self.state.bits and failed < runs:
            return True
        if self.state.repeat:
            return failed > 0 or runs >= self.state.repeat
        return enough(failed, runs)

    def _signature(self, looks: Sequence[Look]) -> Signature | None:
        """What these looks at the bad end say must be searched for; None where they show nothing."""
        if self.state.bits:
            return next((Signature.of(look, bits=True) for look in looks if look.state is CaseState.PASSED), None)
        failed = [look for look in looks if look.state is CaseState.FAILED]
        known = self.state.target.known
        if known is not None:
            signature = Signature(self.state.target.label, (known,))
        elif failed:
            signature = Signature.of(failed[0])
        else:
            return None
        if not any(signature.seen(look) is Seen.BAD for look in failed):
            return signature
        for look in failed:
            signature = signature.widened(look)
        return signature

    def _not_bad(self, candidate: Candidate, looks: Sequence[Look], signature: Signature | None) -> Exception:
        what = f"the bad end {candidate.name}"
        if any(look.state in (CaseState.UNBUILDABLE, CaseState.BROKEN) for look in looks):
            return _unusable(what, looks)
        wanted = "a pass, whose bits can be compared" if self.state.bits else "a failure of the case"
        if signature:
            wanted = f"the failure of the stored run, {signature.words}"
        return UsageError(
            f"{what} does not show what is searched for.\n  seen      {_tally(looks)}\n  expected  {wanted}"
        )

    def _tell(self, candidate: Candidate, answer: Answer, words: str) -> None:
        if candidate.key not in self._told:
            self._told.add(candidate.key)
            self._listener.decided(candidate, answer, words)


def decide(seen: Sequence[Seen], passes: int) -> Answer | None:
    """What a candidate is; None where it needs another run.

    One run that shows what is searched for settles it. Another failure may hide it, so the candidate is skipped.
    """
    if Seen.BAD in seen:
        return Answer.BAD
    if Seen.OTHER in seen or Seen.UNBUILDABLE in seen or list(seen).count(Seen.BROKEN) >= ATTEMPTS:
        return Answer.SKIP
    return Answer.GOOD if list(seen).count(Seen.GOOD) >= passes else None


def _tally(looks: Sequence[Look], signature: Signature | None = None) -> str:
    """``3 of 10 runs: wrong output, rank 0; 7 of 10 runs: passed``"""
    counts = Counter(signature.words_of(look) if signature else look.words for look in looks)
    of = f"of {len(looks)} run{'s' * (len(looks) != 1)}"
    return "; ".join(f"{count} {of}: {words}" for words, count in counts.items())


def _unusable(what: str, looks: Sequence[Look]) -> Exception:
    said = f"{what} cannot be used.\n  seen  {_tally(looks)}"
    if looks[-1].state is CaseState.BROKEN:
        return InfrastructureError(said)
    return UsageError(said)
