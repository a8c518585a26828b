"""The closed vocabularies of records: words that one part of gpucheck writes and other parts act on."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal


class Vocabulary(str, Enum):
    """An enum whose members are written as plain strings, and which accepts unknown words.

    An unknown word is kept as it was written and nothing acts on it: so records of another version can be read, and
    checks of users can report kinds of their own.
    """

    @classmethod
    def _missing_(cls, value: object) -> Vocabulary | None:
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word

    @property
    def known(self) -> bool:
        """Whether this gpucheck knows the word."""
        return self.name in type(self).__members__

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:  # Python versions differ in it
        return format(str(self.value), spec)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # and in this
        return type(self), (self.value,)


class ViolationKind(Vocabulary):
    """What is wrong, other than the numbers."""

    GUARD = "guard"  # memory around a tensor was written to
    PASSES_DIFFER = "passes differ"  # outputs depend on memory that is not part of the inputs
    REPEATS_DIFFER = "repeats differ"  # equal inputs in equal memory gave other bits
    TUNING_DIFFERS = "tuning differs"  # the call that the autotuner measured gave other bits than later calls
    FALLBACK = "fallback"  # no kernel under test was launched
    LAUNCHES = "launches"  # fewer kernels under test were launched than the calls need
    CONFIGURATION = "configuration"  # a kernel was launched in another configuration than the case asks for
    DEVICE = "device"  # a kernel was launched on another GPU than the one of its tensors
    INPUTS = "inputs"  # a call changed what it was given
    ALIAS = "alias"  # an output shares the memory of an input
    REUSED = "reused"  # an output lies in memory that an earlier call returned
    SETTINGS = "settings"  # a call left settings of its process changed
    OUTPUT = "output"  # an output is missing, or has another shape, dtype, device or place than asked for
    LAYOUT = "layout"  # an output has gaps, or its elements share memory
    NO_REFERENCE = "no reference"  # the check names no output to judge
    CACHED = "cached"  # a candidate's answer is kept from an earlier call; this and the next ones show in further calls
    CALLS_DIFFER = "calls differ"  # a further call got a wrong answer, though the answer to the case is right
    ORDER = "order"  # the answer is right only if the caller waits for the GPU
    IDLE = "idle"  # the answer stays right when the candidate's kernels do nothing, or something else
    GROUP = "group"  # ranks called different collectives, or with different sizes
    STATISTICS = (
        "statistics"  # a candidate's answer is wrong for inputs that are drawn otherwise than those of the case
    )
    LEFT_BEHIND = "left behind"  # processes of a candidate live on when its own has ended
    PROCESS = "process"  # the process ends, or does not return, when the candidate's kernels do nothing


class TransferFault(Vocabulary):
    """What is wrong about bytes that came from another rank."""

    MISSING = "missing"  # the sender's contribution is not in the sum
    TWICE = "twice"  # it is in the sum more than once
    STALE = "stale"  # what the sender's buffer held before
    EARLY = "early"  # what the receiver's buffer held before: it was read before they came
    SWAPPED = "swapped"  # bytes that the same sender gave for another place or another receiver
    DROPPED = "dropped"  # nothing came: zeros, or what memory was filled with
    CORRUPT = "corrupt"  # other bytes
    REDUCED = "reduced wrongly"  # the result is no sum of what the ranks gave, each once, less one or twice
    OTHER_SHARE = "other share"  # the receiver computed the sender's share of the work in place of its own
    UNWRITTEN = "unwritten"  # rows of the sender's experts, which nobody wrote here, are in the sum
    COMPUTED = "computed wrongly"  # by the receiver itself, which is the sender, before ranks did anything together
    FOLLOWS = "follows"  # right from what all ranks gave; what another rank gave is wrong

    @property
    def own(self) -> bool:
        """Whether it lies on the receiver, and other ranks get what follows from it."""
        return self in (TransferFault.OTHER_SHARE, TransferFault.UNWRITTEN, TransferFault.COMPUTED)

    @property
    def may_follow(self) -> bool:
        """Whether a fault of another rank's own part explains it."""
        return self in (TransferFault.REDUCED, TransferFault.FOLLOWS)


class Wall(Vocabulary):
    """What keeps a candidate from its judge, in the words of records and reports."""

    MEMORY = "memory of its judge closed"
    FILES = "files read-only outside of its own folder and the caches of compilers"
    SIGNALS = "no signal reaches its judge"
    PRIVILEGES = "no privileges"


class ExperimentName(Vocabulary):
    """What is changed when a failing case runs again; :mod:`gpucheck.diagnose.experiment_list` describes each."""

    REPEAT = "repeat"
    HISTORY = "history"
    NO_GROUP = "no group"
    IN_STEP = "in step"
    ONE_THREAD = "one thread"
    WAITS = "waits"
    GUARDED = "guarded"
    OTHER_RANK = "other rank"
    OTHER_DEVICE = "other device"
    SYNCHRONISED = "synchronised"
    VISIBLE = "visible"
    FRESH_CACHE = "fresh cache"
    ALONE = "alone"


Attempted = ExperimentName | Literal[""]
"""What an attempt is made for: an experiment, or "" for what the plan asks for."""


def file_name(attempted: Attempted) -> str:
    """What an attempt is made for, as part of the name of a file."""
    return attempted.replace(" ", "-")
