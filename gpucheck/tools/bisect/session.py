"""A search at work: runs candidates as often as they need, keeps what was seen, and says what they are."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gpucheck.diagnose.wording import counted
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.tools.bisect.observation import Observation
from gpucheck.tools.bisect.observation import State as CaseState
from gpucheck.tools.bisect.repeats import Rate, enough, estimate
from gpucheck.tools.bisect.run_once import Prepared
from gpucheck.tools.bisect.saved_search import State
from gpucheck.tools.bisect.signature import Answer, Seen, Signature
from gpucheck.tools.bisect.sources.base import Candidate, Unbuildable
from gpucheck.tools.bisect.target import Target

ATTEMPTS = 2  # runs without an answer before a candidate is given up

Take = Callable[[Target, Prepared, Path], Observation]
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
        self._run_until(candidate, self._end_is_known)
        observations = self.state.of(candidate)
        signature = self._signature(observations)
        seen = Counter(signature.seen(observation) for observation in observations) if signature else Counter()
        if signature is None or not seen[Seen.BAD]:
            raise self._not_bad(candidate, observations, signature)
        failed, runs = seen[Seen.BAD], len(observations) - seen[Seen.BROKEN]
        if self.state.bits and failed < runs:
            raise UsageError(f"the outputs of {candidate.name} differ from run to run: their bits tell nothing")
        rate = Rate(failed, runs, self.state.repeat) if self.state.repeat else estimate(failed, runs)
        self._tell(candidate, Answer.BAD, _tally(observations, signature))
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
        observations = self.state.of(candidate)
        what = f"the good end {candidate.name}"
        if answer is Answer.BAD:
            raise UsageError(
                f"{what} shows what is searched for: {verified.signature.words}.\n"
                f"  seen  {_tally(observations)}\n  try   an end that lies further away"
            )
        raise _unusable(what, observations)

    def ask(self, candidate: Candidate, verified: Verified) -> Answer:
        """What a candidate is, from as many runs as it takes."""
        signature, passes = verified.signature, verified.rate.passes

        def answer(observations: Sequence[Observation]) -> Answer | None:
            return decide([signature.seen(observation) for observation in observations], passes)

        self._run_until(candidate, lambda observations: answer(observations) is not None)
        observations = self.state.of(candidate)
        found = answer(observations)
        assert found is not None
        self._tell(candidate, found, _tally(observations, signature))
        return found

    def _run_until(self, candidate: Candidate, settled: Callable[[Sequence[Observation]], bool]) -> None:
        """Runs a candidate until what was seen settles it; each run is saved."""
        observations = self.state.of(candidate)
        with ExitStack() as stack:
            prepared: Prepared | None = None
            while not settled(observations):
                self._listener.running(candidate, len(observations) + 1)
                try:
                    prepared = prepared or stack.enter_context(self.state.source.prepared(candidate, self.state.work))
                except Unbuildable as reason:
                    observations.append(Observation(CaseState.UNBUILDABLE, self.state.target.label, reason=str(reason)))
                else:
                    observations.append(self._take(self.state.target, prepared, self._folder()))
                self._settle_on(observations[-1])
                self.state.save()

    def _settle_on(self, observation: Observation) -> None:
        """From the first case that shows something on, only that case is observed."""
        telling = CaseState.PASSED if self.state.bits else CaseState.FAILED
        if not self.state.target.label and observation.state is telling:
            self.state.target = replace(self.state.target, label=observation.case)

    def _folder(self) -> Path:
        """Where the next run goes; what an interrupted one left there is removed."""
        folder = self.state.work / "runs" / f"{self.state.runs + 1:04d}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _end_is_known(self, observations: Sequence[Observation]) -> bool:
        broken = sum(observation.state is CaseState.BROKEN for observation in observations)
        if broken >= ATTEMPTS or any(observation.state is CaseState.UNBUILDABLE for observation in observations):
            return True
        signature = self._signature(observations)
        failed = sum(signature is not None and signature.seen(observation) is Seen.BAD for observation in observations)
        runs = len(observations) - broken
        if self.state.bits and failed < runs:
            return True
        if self.state.repeat:
            return failed > 0 or runs >= self.state.repeat
        return enough(failed, runs)

    def _signature(self, observations: Sequence[Observation]) -> Signature | None:
        """What these runs of the bad end say must be searched for; None where they show nothing."""
        if self.state.bits:
            return next(
                (
                    Signature.of(observation, bits=True)
                    for observation in observations
                    if observation.state is CaseState.PASSED
                ),
                None,
            )
        failed = [observation for observation in observations if observation.state is CaseState.FAILED]
        known = self.state.target.known
        if known is not None:
            signature = Signature(self.state.target.label, (known,))
        elif failed:
            signature = Signature.of(failed[0])
        else:
            return None
        if not any(signature.seen(observation) is Seen.BAD for observation in failed):
            return signature
        for observation in failed:
            signature = signature.widened(observation)
        return signature

    def _not_bad(
        self, candidate: Candidate, observations: Sequence[Observation], signature: Signature | None
    ) -> Exception:
        what = f"the bad end {candidate.name}"
        if any(observation.state in (CaseState.UNBUILDABLE, CaseState.BROKEN) for observation in observations):
            return _unusable(what, observations)
        wanted = "a pass, whose bits can be compared" if self.state.bits else "a failure of the case"
        if signature:
            wanted = f"the failure of the stored run, {signature.words}"
        return UsageError(
            f"{what} does not show what is searched for.\n  seen      {_tally(observations)}\n  expected  {wanted}"
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


def _tally(observations: Sequence[Observation], signature: Signature | None = None) -> str:
    """``3 of 10 runs: wrong output, rank 0; 7 of 10 runs: passed``"""
    counts = Counter(
        signature.words_of(observation) if signature else observation.words for observation in observations
    )
    of = f"of {counted(len(observations), 'run')}"
    return "; ".join(f"{count} {of}: {words}" for words, count in counts.items())


def _unusable(what: str, observations: Sequence[Observation]) -> Exception:
    said = f"{what} cannot be used.\n  seen  {_tally(observations)}"
    if observations[-1].state is CaseState.BROKEN:
        return InfrastructureError(said)
    return UsageError(said)
