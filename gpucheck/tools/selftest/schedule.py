"""Which faults share a run: those that cannot disturb each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpucheck.model.errors import ExitCode
from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.common import HONEST, attention
from gpucheck.tools.selftest.catalogue.controls import BYSTANDERS, CASES, OTHER_CONFIG
from gpucheck.tools.selftest.fault import Fault, Session, Target
from gpucheck.tools.selftest.injection import Planted

EXPERIMENTS = {"cpu": 600.0, "cuda": 300.0}  # s at most that a rank spends on trying failed cases otherwise
CASE_TIMEOUT = 60.0  # s
HANG_TIMEOUT = {"cpu": 6.0, "cuda": 15.0}  # s; the same where cases hang; kernels for GPUs are compiled within it
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
    def case_timeout(self) -> float:
        return HANG_TIMEOUT[self.device] if self.session is Session.HANG else CASE_TIMEOUT

    @property
    def experiments(self) -> float:
        """Seconds a rank may spend on trying failed cases otherwise: nearly all causes take that."""
        if self.session is Session.HANG:  # only to tell which kernel it is that does not end
            return self.case_timeout if self.device == "cuda" else 0.0
        return EXPERIMENTS[self.device] if self.session is not Session.LOST else 0.0


def fault_runs(faults: Sequence[Fault], device: str, ranks: int) -> list[FaultRun]:
    """The runs that show these faults, each on each of its targets, and the one without any."""
    made = [FaultRun("no fault", "controls", device, ranks, 0)]
    shared = sorted(_of(faults, Session.SHARED), key=lambda fault: fault.expected.outcome is not Outcome.MISMATCH)
    each = [fault for fault in shared if Target.EACH in fault.targets]
    for turn in range(ranks if each else 0):
        planted = [Planted(fault, ((number + turn) % ranks,)) for number, fault in enumerate([*each, OTHER_CONFIG])]
        made.append(
            FaultRun(f"each fault on one rank, turn {turn + 1}", "each", device, ranks, len(made), tuple(planted))
        )
    everywhere = [fault for fault in shared if fault not in each or (Target.ALL in fault.targets and ranks > 1)]
    planted = [Planted(fault, shown_on(fault, ranks)) for fault in everywhere]
    if planted:
        made.append(FaultRun("each fault on all ranks", "all", device, ranks, len(made), tuple(planted)))
    for name, session in (("hangs on each rank", Session.HANG), ("compile races on each rank", Session.RACE)):
        planted = [Planted(apart(fault, rank), (rank,)) for fault in _of(faults, session) for rank in range(ranks)]
        if planted:
            made.append(FaultRun(name, "each", device, ranks, len(made), tuple(planted), session))
    cheats = _of(faults, Session.CANDIDATES)
    for turn in range(ranks if cheats else 0):
        name = f"candidates that cheat, turn {turn + 1}"
        planted = [Planted(fault, ((number + turn) % ranks,)) for number, fault in enumerate(cheats)]
        made.append(FaultRun(name, "each", device, ranks, len(made), tuple(planted), Session.CANDIDATES))
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


def apart(fault: Fault, rank: int) -> Fault:
    """The fault with a case for one rank alone, so that all ranks can have it in one run."""
    return replace(fault, case={**fault.case, "n": fault.case["n"] + APART * rank})


def shown_on(fault: Fault, ranks: int) -> tuple[int, ...]:
    """The ranks that a fault shows on when it is planted on all of them."""
    return tuple(range(Target.OTHERS in fault.targets, ranks))


def _of(faults: Sequence[Fault], session: Session) -> list[Fault]:
    return [fault for fault in faults if fault.session is session]
