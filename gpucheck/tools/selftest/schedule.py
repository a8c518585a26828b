"""Which faults share a run: those that cannot disturb each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpucheck.model.errors import ExitCode
from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.common import HONEST, attention
from gpucheck.tools.selftest.catalogue.controls import BYSTANDERS, CASES, OTHER_CONFIG
from gpucheck.tools.selftest.fault import Edit, Fault, Session, Target
from gpucheck.tools.selftest.injection import Planted

EXPERIMENTS = 600.0  # s at most that a rank spends on trying failed cases otherwise
CASE_TIMEOUT = 60.0  # s
NO_STRAGGLER = 1e6  # times as slow as its peers: runs that share GPUs slow each other down
HANG_TIMEOUT = {"cpu": 6.0, "cuda": 15.0}  # s; the same where cases hang; kernels for GPUs are compiled within it
MOST_PER_RANK = 16  # faults of a rank in a run, by their effort, where several runs are made at once
PROOF = 8  # faults that take a rank as long as the processes do in which those of all ranks are proven
APART = 100  # output columns between the cases of one fault on two ranks
FEW_CASES = tuple(attention(queries) for queries in (24, 28, 36, 40, 44))


@dataclass(frozen=True)
class FaultRun:
    """One run of ``gpucheck run`` and what is planted in it."""

    name: str
    column: str  # of the matrix: "each", "all" or "controls"; "each" stands for the rank of each fault
    device: str  # "cuda" or "cpu"
    ranks: int
    seed: int
    planted: tuple[Planted, ...] = ()
    session: Session = Session.SHARED

    @property
    def wrong(self) -> list[Planted]:
        """What is planted and must be found; the rest must not."""
        return [item for item in self.planted if item.fault.expected.outcome is not Outcome.PASS]

    @property
    def size(self) -> int:
        """Faults, counted on each rank that runs their cases: what makes a run last longer than another."""
        if self.session is Session.CANDIDATES:  # whose twins take as long
            return len(self.planted) * self.ranks
        proven = self.column == "all" and any(item.fault.proven_often for item in self.planted)
        return sum(len(item.ranks) for item in self.planted) + PROOF * self.ranks * proven

    @property
    def groups(self) -> list[Mapping[str, Any]]:
        """The ``[[cases]]`` tables of its scenario."""
        if not self.planted:
            return list(CASES)
        if self.session is Session.LOST:
            return list(FEW_CASES)
        faults = [item.fault for item in self.planted]
        if self.session is Session.CANDIDATES:
            return [*(fault.case for fault in faults), HONEST]
        return [*(case for fault in faults for case in (*fault.beside, fault.case)), *BYSTANDERS]

    @property
    def exit_code(self) -> ExitCode:
        """What the run must end with."""
        codes = [item.fault.expected.exit_code for item in self.wrong]
        return max(codes, key=lambda code: code is ExitCode.FAIL) if codes else ExitCode.PASS

    @property
    def one_queue(self) -> bool:
        """Whether the streams of its processes may share one queue of the GPU: nothing planted in it is about streams.

        A node makes its contexts one after the other, and those with one queue in half the time.
        """
        about_streams = any("stream order" in item.fault.expected.title for item in self.planted)
        return self.session in (Session.SHARED, Session.CACHE, Session.RACE) and not about_streams

    @property
    def case_timeout(self) -> float:
        return HANG_TIMEOUT[self.device] if self.session is Session.HANG else CASE_TIMEOUT

    @property
    def experiments(self) -> float:
        """Seconds a rank may spend on trying failed cases otherwise: nearly all causes take that."""
        if self.session is Session.HANG:  # only to tell which kernel it is that does not end
            return self.case_timeout if self.device == "cuda" else 0.0
        return EXPERIMENTS if self.session not in (Session.LOST, Session.CANDIDATES) else 0.0


def fault_runs(faults: Sequence[Fault], device: str, ranks: int, *, split: bool = False) -> list[FaultRun]:
    """The runs that show these faults, each on each of its targets, and the one without any.

    Args:
        split: many faults go to several runs, which are made at once; their data are those of the one run.
    """
    made = [FaultRun("no fault", "controls", device, ranks, 0)]
    shared = sorted(_of(faults, Session.SHARED), key=lambda fault: fault.expected.outcome is not Outcome.MISMATCH)
    each = [fault for fault in shared if Target.EACH in fault.targets]
    parts = _parts(each, ranks if split else 0, _edits)
    for turn, (words, part) in itertools.product(range(ranks), parts):
        beside = [OTHER_CONFIG] if part is parts[-1][1] else []
        dealt = _dealt([*part, *beside], ranks)
        planted = tuple(Planted(fault, ((rank + turn) % ranks,)) for fault, rank in dealt)
        name = f"each fault on one rank, turn {turn + 1}{words}"
        made.append(FaultRun(name, "each", device, ranks, 1 + turn, planted))
    everywhere = [fault for fault in shared if fault not in each or (Target.ALL in fault.targets and ranks > 1)]
    for words, part in _parts(everywhere, 1 if split else 0, _everywhere):
        planted = tuple(Planted(fault, shown_on(fault, ranks)) for fault in part)
        made.append(FaultRun(f"each fault on all ranks{words}", "all", device, ranks, 1 + ranks, planted))
    for name, session in (("hangs on each rank", Session.HANG), ("compile races on each rank", Session.RACE)):
        hung = tuple(Planted(apart(fault, rank), (rank,)) for fault in _of(faults, session) for rank in range(ranks))
        if hung:
            made.append(FaultRun(name, "each", device, ranks, len(made), hung, session))
    cheats = _of(faults, Session.CANDIDATES)
    for words, part in _parts(cheats, 1 if split else 0, _edits):  # whose twins run on the other ranks
        planted = tuple(Planted(fault, (number % ranks,)) for number, fault in enumerate(part))
        name = f"candidates that cheat{words}"
        made.append(FaultRun(name, "each", device, ranks, len(made), planted, Session.CANDIDATES))
    damaged = [Planted(fault, tuple(range(ranks))) for fault in _of(faults, Session.CACHE)]
    if damaged:
        name = "damage in the kernel cache"
        made.append(FaultRun(name, "all", device, ranks, len(made), tuple(damaged), Session.CACHE))
    for fault in _of(faults, Session.LOST):
        for rank in range(ranks):
            lost = (Planted(fault, (rank,)),)
            name = f"{fault.name} on rank {rank}"
            made.append(FaultRun(name, "each", "cpu", ranks, len(made), lost, Session.LOST))
    return made


def _dealt(faults: Sequence[Fault], ranks: int) -> list[tuple[Fault, int]]:
    """Each fault with the rank that it falls to, so that all have about as much to do: one that is done waits.

    Those that take longest are dealt first, each to a rank that has least so far.
    """
    load, rank_of = [0] * ranks, dict[str, int]()
    for fault in sorted(faults, key=lambda fault: -fault.effort):
        rank = rank_of[fault.name] = load.index(min(load))
        load[rank] += fault.effort
    return [(fault, rank_of[fault.name]) for fault in faults]


def _edits(fault: Fault) -> tuple[bool, ...]:
    """Sorts faults that change source from those that do not.

    All runs of the latter launch the same kernels, which the kernel cache of the self-test then holds for all of them.
    """
    return (not isinstance(fault.plant, Edit),)


def _everywhere(fault: Fault) -> tuple[bool, ...]:
    """Sorts faults of all ranks, those too that take many processes to be told from those that do not.

    The former share these processes in a run, and the latter have processes of their own.
    """
    edits = _edits(fault)
    return (*edits, edits[0] and not fault.proven_often)


def _parts(
    faults: Sequence[Fault], sharing: int, kind: Callable[[Fault], tuple[bool, ...]]
) -> list[tuple[str, Sequence[Fault]]]:
    """Faults that share a run, with what the name of their run says of them; only those of one kind do.

    Args:
        sharing: ranks that the faults of a run are spread over; 0: they all go to one run.
    """
    if not sharing:
        return [("", faults)] if faults else []
    kinds = [[fault for fault in faults if kind(fault) == each] for each in sorted({*map(kind, faults)})]
    counts = [math.ceil(sum(fault.effort for fault in kind) / (sharing * MOST_PER_RANK)) for kind in kinds]
    parts = [kind[first::count] for kind, count in zip(kinds, counts, strict=True) for first in range(count)]
    return [(f", part {number} of {len(parts)}" * (len(parts) > 1), part) for number, part in enumerate(parts, 1)]


def apart(fault: Fault, rank: int) -> Fault:
    """The fault with a case for one rank alone, so that all ranks can have it in one run."""
    return replace(fault, case={**fault.case, "n": fault.case["n"] + APART * rank})


def shown_on(fault: Fault, ranks: int) -> tuple[int, ...]:
    """The ranks that a fault shows on when it is planted on all of them."""
    return tuple(range(Target.OTHERS in fault.targets, ranks))


def _of(faults: Sequence[Fault], session: Session) -> list[Fault]:
    return [fault for fault in faults if fault.session is session]
