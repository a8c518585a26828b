"""What the child of a rank is told once, its Setup, and the files that it has for itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName, file_name
from gpucheck.worker.supervisor import source_builds
from gpucheck.worker.supervisor.attempt import Attempt

if TYPE_CHECKING:
    from gpucheck.worker.protocol import Setup
    from gpucheck.worker.supervisor.node_sync import Node

CANDIDATES = "candidates"  # folder with one for each candidate and rank, which alone that may write to


def folder_of_candidate(folder: Path, candidate: str, local_rank: int) -> Path:
    """The folder of a candidate on a rank, which holds its outputs, its caches and what else it writes."""
    own = folder / CANDIDATES / candidate / str(local_rank)
    own.mkdir(parents=True, exist_ok=True)
    return own


class ChildSetups:
    """Makes the setup of each attempt of a rank, and names its files; what is equal in two attempts is equal here."""

    def __init__(self, plan: Plan, node: Node, rank: int, folder: Path, run: Path, lane: str, *, several: bool) -> None:
        """Args:
        folder: of the files that the ranks of the node share.
        run: the run folder.
        lane: ends the names of files that each child of the rank has for itself.
        several: the rank has more than one child at a time.
        """
        self._plan, self._node, self._rank = plan, node, rank
        self._folder, self._run, self._lane, self._several = folder, run, lane, several
        self._extensions: dict[str, Path | None] = {}  # candidate -> where its extensions lie

    def path(self, name: str) -> Path:
        """A file that one child of this rank writes: ``stacks``, ``journal`` or ``collectives``.

        Those that answer single calls have the first two each for itself: several of them may be there at a time.
        """
        return self._folder / f"{name}{self._node.local_rank}{self._lane}"

    def outputs(self, step: Step, record: Record, local_rank: int) -> str:
        """The file that the outputs of an attempt are written to, of one rank of this node."""
        candidate = step.case.check in self._plan.candidates
        folder = folder_of_candidate(self._folder, step.case.check, local_rank) if candidate else self._folder
        name = f"{of_round(record.step, record.round)}{file_name(record.experiment)}"
        return str(folder / f"{name}.outputs{local_rank}{self._lane}")

    def extensions(self, name: str) -> Path | None:
        """Where the extensions of a candidate lie; None where it has none, and for all that is no candidate."""
        if name not in self._plan.candidates:
            return None
        if name not in self._extensions:
            path = Path(next(source.files[-1] for source in self._plan.check_sources if name in source.checks))
            self._extensions[name] = source_builds.folder_of(path)
        return self._extensions[name]

    def of(self, attempt: Attempt) -> Setup:
        """The setup of the child that an attempt needs."""
        from gpucheck.worker.protocol import Setup

        library = self._plan.library
        conditions = attempt.step.conditions.lifelong
        candidate = attempt.step.case.check in self._plan.candidates
        own_folder, apart = "", f"-{attempt.process}".replace(" ", "-") if attempt.process else ""
        if candidate:
            folder = folder_of_candidate(self._folder, attempt.step.case.check, self._node.local_rank)
            own_folder = str(folder.parent if conditions.whole_node else folder)
        return Setup(
            conditions=conditions,
            device=self._plan.device,
            local_rank=self._node.local_rank,
            local_ranks=self._node.local_ranks,
            rank=self._rank,
            world_size=self._plan.world_size,
            library_root=library["root"],
            generation=library["generation"],
            stacks=f"{self.path('stacks')}{apart}",
            journal=f"{self.path('journal')}{apart}",
            attempt=attempt.process or attempt.record.experiment,
            extensions=str(self.extensions(attempt.step.case.check) or ""),
            precision=self._plan.precision(attempt.step.case.check),
            candidate=attempt.step.case.check if candidate else "",
            own_folder=own_folder,
            calls=attempt.role,
            launches=attempt.launches,
            cache=self._cache(attempt, conditions),
            meeting=self._meeting(conditions),
            collectives=str(self.path("collectives")) if conditions.together else "",
            partner=attempt.partner,
            engine=self._plan.engine(conditions.engine),
            turns=str(self._folder / f"turns{self._node.local_rank}") if self._several else "",
        )

    def _cache(self, attempt: Attempt, conditions: Conditions) -> str:
        """The folder of Triton's kernel cache; "" is the usual one. An experiment never shares a cold one.

        All cases that a rank tries with a fresh cache have one together: what is in it was compiled for such a case,
        and cases of one process need a kernel that several of them launch compiled once.
        """
        if conditions.cache == "shared":
            return ""
        record = attempt.record
        own = conditions.cache == "fresh" or record.experiment
        name = "" if record.experiment == ExperimentName.FRESH_CACHE else of_round(record.step, record.round)
        name = f"cache-{name}{file_name(record.experiment)}" + (f"-{self._node.local_rank}" if own else "")
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return str(folder)

    def _meeting(self, conditions: Conditions) -> str:
        """The file where a process group meets, in the memory of the node where it is the only one."""
        if conditions.process_group != "initialised":
            return ""
        folder = self._folder if self._plan.nnodes == 1 else self._run
        return str(folder / "process-group")


def of_round(number: int, round: int) -> str:
    """What tells the files of a step in one pass over the plan from those in others."""
    return f"{number}-round{round}" if round else str(number)
