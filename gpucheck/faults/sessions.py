"""Which faults share a run: those that cannot disturb each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpucheck.faults.catalogue.common import attention
from gpucheck.faults.catalogue.controls import BYSTANDERS, CASES, OTHER_CONFIG
from gpucheck.faults.fault import Fault, Session, Target
from gpucheck.faults.planting import Planted
from gpucheck.model.errors import ExitCode
from gpucheck.model.record import Outcome

EXPERIMENTS = 40.0  # s a rank may spend on trying failed cases otherwise
CASE_TIMEOUT = 6.0  # s; a case that hangs costs it twice
COMPILING_TIMEOUT = 30.0  # s; the same where kernels are compiled
FEW_CASES = tuple(attention(queries) for queries in (24, 28, 36, 40, 44))


@dataclass(frozen=True)
class Visit:
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
        return [*(fault.case for fault in faults), *(case for fault in faults for case in fault.beside), *BYSTANDERS]

    @property
    def exit_code(self) -> ExitCode:
        """What the run must end with."""
        codes = [item.fault.expected.exit_code for item in self.wrong]
        return max(codes, key=lambda code: code is ExitCode.FAIL) if codes else ExitCode.PASS

    @property
    def case_timeout(self) -> float:
        return CASE_TIMEOUT if self.device == "cpu" else COMPILING_TIMEOUT

    @property
    def experiments(self) -> float:
        """Seconds a rank may spend on trying failed cases otherwise: where causes take that."""
        needed = self.column == "each" or any(item.fault.experiments for item in self.planted)
        return EXPERIMENTS if needed and self.session is not Session.LOST else 0.0


def visits(faults: Sequence[Fault], device: str, ranks: int) -> list[Visit]:
    """The runs that show these faults, each on each of its targets, and the one without any."""
    made = [Visit("no fault", "controls", device, ranks, 0)]
    shared = sorted(_of(faults, Session.SHARED), key=lambda fault: fault.expected.outcome is not Outcome.MISMATCH)
    each = [fault for fault in shared if Target.EACH in fault.targets]
    for turn in range(ranks if each else 0):
        planted = [Planted(fault, ((number + turn) % ranks,)) for number, fault in enumerate([*each, OTHER_CONFIG])]
        made.append(Visit(f"each fault on one rank, turn {turn + 1}", "each", device, ranks, len(made), tuple(planted)))
    everywhere = [fault for fault in shared if fault not in each or (Target.ALL in fault.targets and ranks > 1)]
    for name, tried in (("each fault on all ranks", False), ("each fault that shows under some conditions", True)):
        planted = [Planted(fault, shown_on(fault, ranks)) for fault in everywhere if fault.experiments is tried]
        if planted:
            made.append(Visit(name, "all", device, ranks, len(made), tuple(planted)))
    damaged = [Planted(fault, tuple(range(ranks))) for fault in _of(faults, Session.CACHE)]
    if damaged:
        name = "damage in the kernel cache"
        made.append(Visit(name, "all", device, ranks, len(made), tuple(damaged), Session.CACHE))
    for fault in _of(faults, Session.LOST):
        for rank in range(ranks):
            lost = (Planted(fault, (rank,)),)
            name = f"{fault.name} on rank {rank}"
            made.append(Visit(name, "each", "cpu", ranks, len(made), lost, Session.LOST))
    return made


def shown_on(fault: Fault, ranks: int) -> tuple[int, ...]:
    """The ranks that a fault shows on when it is planted on all of them."""
    return tuple(range(Target.OTHERS in fault.targets, ranks))


def _of(faults: Sequence[Fault], session: Session) -> list[Fault]:
    return [fault for fault in faults if fault.session is session]
