"""What a client asks for and what it is answered, in neutral terms: both wire formats are made of these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import gpucheck

PRIORITIES = {"high": 0, "normal": 1, "low": 2}


class State(str, Enum):
    """Where a task is, in the words of KernelGYM."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"  # there is a verdict on the candidate
    FAILED = "failed"  # there is none, or the sources are no pair
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing will change it any more."""
        return self not in (State.PENDING, State.PROCESSING)


@dataclass(frozen=True)
class Evaluation:
    """A pair to judge."""

    problem: str  # source with Model, get_inputs and get_init_inputs
    candidate: str  # source with ModelNew
    seed: int = 42
    trials: int = 5
    timed: bool = True  # times are taken too
    seconds: float = 600.0  # it may take
    backend: str = "triton"  # as the client names it
    entry_point: str = "Model"  # class of the problem; that of the candidate ends in "New"
    precision: str = ""  # the least that products may be computed in; "": as the problem says
    own_kernel: bool = False  # a candidate without a kernel of its own fails
    preferred: int | None = None  # device, if it is free

    @property
    def content(self) -> str:
        """Hash of all that the answer depends on; whoever asks for the same gets the same answer."""
        asked = {key: value for key, value in asdict(self).items() if key != "preferred"}
        text = json.dumps([gpucheck.__version__, asked], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Reads what :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """The form on disk."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Answer:
    """What is known of a candidate."""

    status: int = 200  # of HTTP, as clients of TritonForge expect it; 200: there is a verdict
    verdict: str = ""  # of gpucheck; "" without a report
    compiled: bool = False
    correct: bool = False
    detail: str = ""  # why the status is not 200
    runtime: float | None = None  # ms, of one call
    reference: float | None = None  # ms, of one call of Model
    runtime_stats: Mapping[str, float] = field(default_factory=dict)  # ms
    reference_stats: Mapping[str, float] = field(default_factory=dict)  # ms
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lasting: bool = True  # it tells of the candidate, and not of this server at that time

    @property
    def state(self) -> State:
        """What it makes of its task."""
        if self.status in (408, 504):
            return State.TIMEOUT
        return State.COMPLETED if self.status == 200 else State.FAILED

    @property
    def speedup(self) -> float | None:
        """Time of Model over that of the candidate; None where one is not known or the candidate is not right."""
        if not self.correct or not self.runtime or not self.reference:
            return None
        return self.reference / self.runtime

    @classmethod
    def from_json(cls, text: str) -> Answer:
        """Reads what :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """The form on disk."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Task:
    """An evaluation in the queue."""

    number: int  # in the order of submission
    id: str  # as clients name it
    content: str
    evaluation: Evaluation
    priority: int
    state: State
    submitted: float  # s since the epoch, as the next two
    started: float | None = None
    finished: float | None = None
    device: int | None = None
    starts: int = 0  # times that it was started
    answer: Answer | None = None
