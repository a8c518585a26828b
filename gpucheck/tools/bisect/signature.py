"""What is searched for: a failure, or the bits of an output, as the bad end shows it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from gpucheck.diagnose.wording import rank_list
from gpucheck.tools.bisect.observation import Failure, Observation, State


class Answer(str, Enum):
    """What a candidate is."""

    GOOD = "good"
    BAD = "bad"  # shows what is searched for
    SKIP = "skip"  # cannot be told: not buildable, another failure, no answer


class Seen(str, Enum):
    """What one run shows of what is searched for."""

    GOOD = "good"
    BAD = "bad"
    OTHER = "other"  # fails, but otherwise
    UNBUILDABLE = "not buildable"
    BROKEN = "no answer"


@dataclass(frozen=True)
class Signature:
    """What tells the failure, or the bits, from any other.

    A flaky fault may show on several sets of ranks and under several titles. Whatever the bad end shows counts as the
    same; where its ranks differ from run to run, so does any part of them.
    """

    case: str  # label
    failures: tuple[Failure, ...] = ()  # the first is the one that must show; none where bits are searched for
    bits: str = ""
    inputs: str = ""  # that give these bits

    @classmethod
    def of(cls, observation: Observation, *, bits: bool = False) -> Signature:
        """The signature of the first failure in an observation, or of its outputs."""
        if bits:
            return cls(observation.case, bits=observation.bits, inputs=observation.inputs)
        return cls(observation.case, observation.failures[:1])

    def widened(self, observation: Observation) -> Signature:
        """The signature that takes one more run of the bad end: its other ranks, or its failures where all differ."""
        alike = [failure for failure in observation.failures if failure.alike(self.failures[0])]
        new = [failure for failure in alike or observation.failures if not self._takes(failure)]
        return replace(self, failures=(*self.failures, *new))

    def seen(self, observation: Observation) -> Seen:
        """What a run shows."""
        if observation.state is State.UNBUILDABLE:
            return Seen.UNBUILDABLE
        if observation.state is State.BROKEN:
            return Seen.BROKEN
        if self.bits:
            return self._seen_bits(observation)
        if observation.state is State.PASSED:
            return Seen.GOOD
        return Seen.BAD if any(self._takes(failure) for failure in observation.failures) else Seen.OTHER

    def _seen_bits(self, observation: Observation) -> Seen:
        if observation.state is State.FAILED or observation.inputs != self.inputs:
            return Seen.OTHER
        return Seen.BAD if observation.bits == self.bits else Seen.GOOD

    def _takes(self, failure: Failure) -> bool:
        patterns = {known.ranks for known in self.failures if known.alike(failure)}
        everywhere = {rank for ranks in patterns for rank in ranks}
        return failure.ranks in patterns or (len(patterns) > 1 and set(failure.ranks) <= everywhere)

    def words_of(self, observation: Observation) -> str:
        """What a run shows, on one line."""
        return (
            f"{observation.words}, bits {observation.bits[:8]}" if self.bits and observation.bits else observation.words
        )

    @property
    def words(self) -> str:
        """What is searched for, on one line."""
        if self.bits:
            return f"outputs with the bits {self.bits[:8]}"
        titles = dict.fromkeys(failure.title for failure in self.failures)
        patterns = {failure.ranks for failure in self.failures}
        ranks = rank_list(rank for pattern in patterns for rank in pattern)
        return f"{' or '.join(titles)}, {'some of ' * (len(patterns) > 1)}{ranks}"
