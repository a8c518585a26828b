"""What a fault is: where it is planted, on which machines it shows, and what the report must say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gpucheck.model.errors import ExitCode
from gpucheck.model.record import Outcome

OWN_KERNEL = "gpucheck.checks.kernels.flash_attention_kernel"
"""As the file of an :class:`Edit`: the attention kernel of gpucheck itself."""
COLLECTIVE_CALLS = "gpucheck.checks.collective_calls"
"""Likewise: what ranks send each other."""
PEER_COPIES = "gpucheck.checks.peer_copies"
"""Likewise: copies between their devices."""


class Target(str, Enum):
    """The ranks that a fault is planted on in one run."""

    EACH = "each"  # one rank, each in turn
    ONE = "one"  # one rank, the others have an honest twin
    ALL = "all"  # all ranks at once
    OTHERS = "others"  # all ranks at once; shows on every rank but the first of a node, which must stay clean


class Session(str, Enum):
    """The kind of run that shows a fault; faults of one kind and target share runs."""

    SHARED = "shared"  # planted copies of the library, cases under conditions
    CACHE = "cache"  # a second run, over a kernel cache that a first one filled and that was damaged then
    HANG = "hang"  # cases that never end: each rank has one of its own, so that all are waited for at once
    RACE = (
        "race"  # ranks that compile the same kernels, so nothing is planted in those; each rank has a case of its own
    )
    CANDIDATES = "candidates"  # code that was handed in to be judged: problems, and no library
    LOST = "lost"  # a rank is lost: nothing else is told by such a run


@dataclass(frozen=True)
class Edit:
    """Source changed in a private copy, at a place that a short piece of it names."""

    file: str  # relative to the library's package, or the name of a module of gpucheck itself
    anchor: str  # text that occurs exactly once
    text: str  # what takes its place; ``{anchor}`` stands for the anchor
    elsewhere: Edit | None = None  # the same fault, in copies of the library without this file

    @property
    def own(self) -> bool:
        """Whether it changes a module of gpucheck itself, in a private copy of that."""
        return self.file.startswith("gpucheck.")


@dataclass(frozen=True)
class Hook:
    """A call of the library's matrix product that goes through a function of ``matmul_faults.py``.

    It takes the calls with as many output columns as the fault's case has.
    """

    name: str
    argument: str = ""  # "{rank}" stands for the rank that the fault is planted on


@dataclass(frozen=True)
class Startup:
    """A function of :mod:`gpucheck.tools.selftest.startup` that the processes of a rank call before anything else."""

    name: str


@dataclass(frozen=True)
class CacheDamage:
    """A function of ``cache_faults.py`` that changes what a first run left in the kernel cache."""

    name: str


@dataclass(frozen=True)
class UnderConditions:
    """Nothing is changed: the conditions of the case are the fault."""


@dataclass(frozen=True)
class Candidate:
    """A candidate that is a class of ``planted_candidates.py``; on the other ranks it is the honest one."""

    kind: str


Plant = Edit | Hook | Startup | CacheDamage | UnderConditions | Candidate


@dataclass(frozen=True)
class Expected:
    """What the report must say of a fault's case, and of nothing else."""

    outcome: Outcome
    title: str  # pattern of a finding's whole title; ``{cause}`` stands for the cause that the target makes it
    says: tuple[str, ...] = ()  # patterns, each found in a line of the case in a finding: region, rank, kernel, numbers
    exit_code: ExitCode = ExitCode.FAIL


@dataclass(frozen=True)
class Fault:
    """One planted fault."""

    name: str
    summary: str
    plant: Plant
    case: Mapping[str, Any]  # a ``[[cases]]`` table of a scenario that makes one case
    expected: Expected
    targets: tuple[Target, ...] = (Target.EACH,)
    session: Session = Session.SHARED
    machines: tuple[str, ...] = ("cpu", "cuda")  # on which it shows
    fewest_ranks: int = 1  # that it takes to show
    beside: tuple[Mapping[str, Any], ...] = ()  # further cases that show it is none of theirs
    calls: int = 0  # output columns of the calls that a hook takes, where they are not those of the case
    spread: bool = False  # planted on all ranks even for one: its code looks who runs it
    effort: int = 1  # how many times as long as most it takes a rank, experiments included

    @property
    def columns(self) -> int:
        """The output columns by which its calls are told from those of other faults; 0 where it has none."""
        return self.calls or (int(self.case["n"]) if self.case["check"] == "matmul" else 0)

    @property
    def proven_often(self) -> bool:
        """Whether its finding takes as many processes as rule out a fault of some, where all ranks have it."""
        return self.expected.title.startswith(("{cause}", "kernel bug"))

    def reason_against(self, device: str, ranks: int) -> str:
        """Why a machine cannot show it, or ""."""
        if device not in self.machines:
            return "needs GPUs" if device == "cpu" else "needs the interpreter"
        if ranks < self.fewest_ranks:
            return f"needs {self.fewest_ranks} ranks"
        return ""
