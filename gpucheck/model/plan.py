"""What a run was asked to do: the content of ``plan.json``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

from gpucheck.model.accepted import AcceptedFault
from gpucheck.model.case import Case
from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.model.conditions import Conditions
from gpucheck.model.plain import read
from gpucheck.model.record import SCHEMA

EXPECTED_RANKS = ("all", "others")
ISOLATION = ("rank", "case")
STRAGGLER = 1.25
JUDGE = ("library", "engine", "both")


@dataclass(frozen=True)
class ExpectedFailure:
    """The failure that a scenario expects of a case; if the case passes, the run fails."""

    cause: str = ""  # "" takes any
    ranks: str = "all"  # one of EXPECTED_RANKS; "others": every rank but the first of each node, which must be clean

    def includes(self, local_rank: int) -> bool:
        """Whether the rank is one that must fail."""
        return self.ranks == "all" or local_rank > 0


@dataclass(frozen=True)
class Step:
    """One case under some conditions; the unit a rank works on."""

    case: Case
    conditions: Conditions = Conditions()
    optional: bool = False  # if library or machine lack what it needs, the run is still conclusive
    expect: ExpectedFailure | None = None  # None: it must pass
    inapplicable: str = ""  # why the machine at hand cannot run it; such a step is recorded and never run

    @property
    def key(self) -> tuple[Conditions, str]:
        """Conditions and case id, unique in a plan."""
        return (self.conditions, self.case.id)

    @property
    def label(self) -> str:
        """The case id with what is unusual about the conditions."""
        words = self._further_conditions.words
        return self.case.id + (f" ({words})" if words else "")

    @property
    def row(self) -> str:
        """The row of the report's matrix that the step counts in, however often it runs."""
        words = replace(self._further_conditions, repeat=1).words
        return self.case.row + (f" ({words})" if words else "")

    @property
    def together(self) -> bool:
        """Whether all ranks run it at once, each its part."""
        return self.conditions.together

    @property
    def own_engine(self) -> str:
        """The engine whose own path is tested; "": the library or other code is, in whatever process."""
        engine = self.conditions.engine
        return engine if engine and self.case.check.startswith(f"{engine}_") else ""

    @property
    def _further_conditions(self) -> Conditions:
        """The conditions without those that the name of the check says already."""
        return replace(self.conditions, engine="") if self.own_engine else self.conditions

    def to_json(self) -> dict[str, Any]:
        """An item of the steps in ``plan.json``."""
        return {
            **self.conditions.to_json(),
            "optional": self.optional,
            "expect": asdict(self.expect) if self.expect else None,
            "inapplicable": self.inapplicable,
            **self.case.to_json(),
        }

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> Step:
        """The step that :meth:`to_json` wrote; keys that older versions did not write take their defaults."""
        expect = item.get("expect")
        return cls(
            Case.from_json(item),
            Conditions.from_json(item),
            item["optional"],
            ExpectedFailure(**expect) if expect else None,
            item.get("inapplicable", ""),
        )


@dataclass(frozen=True)
class Replay:
    """Says that a plan repeats one step of another run, on the ranks of one of its nodes, for a closer look."""

    rank: int  # of that run: the one to look at
    save: bool  # its tensors and the calls it makes are kept


class _LibraryCopy(TypedDict):
    root: str  # the folder to import from
    package: str  # the folder of triton_kernels in it
    origin: str  # where it came from, in words: "vllm 0.33.0", a path, ...
    content: str  # SHA-256 of all its files
    name: str  # what gpucheck calls this content: a letter, or its first digits
    generation: str  # of its interface


class PlannedLibrary(_LibraryCopy, total=False):
    """The copy of triton_kernels under test, as ``plan.json`` holds it."""

    patches: list[str]  # the files it is patched by; plans of older versions have none


NO_LIBRARY: PlannedLibrary = {
    "root": "",
    "package": "",
    "origin": "none",
    "content": "",
    "name": "none",
    "generation": "",
    "patches": [],
}
"""The library of a plan in which no case needs one; then none is looked up."""


class _Identity(TypedDict, total=False):
    identity: str  # what is known of its files beside its version, in words; plans of older versions have none


class PlannedEngine(_Identity):
    """A serving engine whose own path is tested, as ``plan.json`` holds it."""

    name: str  # of its package: "vllm"
    version: str
    root: str  # the folder to import from
    packages: str  # a folder with third-party packages for it; "": those of the Python that runs
    origin: str  # "installed", "path" or the file name of the wheel that its files were taken from
    installed: bool  # in the Python that runs, with its compiled parts


class Environment(TypedDict, total=False):
    """Software and machine that a run was started on, as ``plan.json`` holds it; plans of older versions say less."""

    software: dict[str, Any]  # "python", "torch", "triton", ... -> version, folder and fingerprint; more with time
    host: str
    cpus: int  # that the run may use
    variables: dict[str, str]  # environment variables that change what kernels compute or how they are made


@dataclass(frozen=True)
class Plan:
    """A scenario bound to a library, a machine and options."""

    id: str
    scenario: str
    title: str
    seed: int
    created: float  # s since the epoch
    device: str  # "cuda" or "cpu"
    nproc: int  # ranks a node
    nnodes: int
    timeout: float  # s, for the whole run
    case_timeout: float  # s, for one case on one rank
    experiments: float  # s each rank may spend on trying failed cases under other conditions
    library: PlannedLibrary  # the copy under test, or NO_LIBRARY
    environment: Environment
    command: list[str]  # the command that repeats this run, without --case
    steps: tuple[Step, ...]
    check_sources: tuple[CheckSource, ...] = ()  # of checks that are not gpucheck's own
    bench: bool = False  # speed is also measured against plain torch and the GPU's ceilings
    straggler: float = STRAGGLER  # a rank this many times slower than the median of its peers gets a warning
    compile_ahead: bool = False  # on GPUs: idle processors compile kernels before the ranks launch them
    isolate: str = "rank"  # one of ISOLATION: one process for each rank, or for each case on each rank
    debug: bool = False  # every launch is waited for, and assertions inside kernels are compiled
    duration: float = 0.0  # s for which ranks repeat the steps; 0: once
    replay: Replay | None = None
    accepted: tuple[AcceptedFault, ...] = ()  # that do not fail the run if they show as they did
    engines: tuple[PlannedEngine, ...] = ()  # those at hand; a step under a condition ``engine`` runs in one of them
    screen: float = 0.0  # s that each GPU is screened once its ranks have ended; 0: not at all
    judge: str = "both"  # one of JUDGE: whose failures fail the run; plans of older versions mean both

    def engine(self, name: str) -> PlannedEngine | None:
        """The engine of this name; None for "" and where it is not at hand."""
        return next((engine for engine in self.engines if engine["name"] == name), None)

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes

    @property
    def has_library(self) -> bool:
        """Whether a copy of the library is under test."""
        return bool(self.library.get("package"))

    @property
    def candidates(self) -> frozenset[str]:
        """Names of the checks made of ``--problem`` and ``--candidate``."""
        problems = [source for source in self.check_sources if source.kind is SourceKind.PROBLEM]
        return frozenset(name for source in problems for name in source.checks)

    def precision(self, check: str) -> str:
        """The least that a candidate's products may be computed in; "" for any other check."""
        pairs = (source for source in self.check_sources if source.kind is SourceKind.PROBLEM)
        return next((source.pair.precision for source in pairs if check in source.checks), "")

    @property
    def rules(self) -> frozenset[str]:
        """Published rules whose verdict on candidates is asked for."""
        return frozenset(source.pair.rule for source in self.check_sources if source.pair.rule)

    @property
    def must_fail(self) -> frozenset[int]:
        """Numbers of the steps that must fail: by the scenario, or as the canary."""
        return frozenset(number for number, step in enumerate(self.steps) if step.expect is not None)

    def local_rank(self, rank: int) -> int:
        """The rank's number on its node."""
        return rank % self.nproc

    def largest(self, numbers: Iterable[int], most: int) -> list[int]:
        """Of some steps, so many of each check that have the most to do, by the product of their cases' sizes.

        First the largest step of each check, then the second of each, and so on.
        """

        def size(number: int) -> int:
            values = self.steps[number].case.params.values()
            return math.prod(value for value in values if type(value) is int and value > 1)

        places: dict[int, int] = {}  # step -> how many of its check are larger
        seen: Counter[str] = Counter()
        for number in sorted(numbers, key=size, reverse=True):
            check = self.steps[number].case.check
            places[number], seen[check] = seen[check], seen[check] + 1
        return [number for number in sorted(places, key=places.__getitem__) if places[number] < most]

    def seen_by(self, rank: int) -> Plan:
        """The plan with the part of one rank in each joint case."""
        return replace(
            self,
            steps=tuple(
                replace(step, case=step.case.at(rank, self.world_size)) if step.together else step
                for step in self.steps
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """The content of ``plan.json``."""
        item = {key: value for key, value in vars(self).items() if key not in ("steps", "replay")}
        if self.replay:
            item["replay"] = asdict(self.replay)
        item["steps"] = [step.to_json() for step in self.steps]
        item["check_sources"] = [asdict(source) for source in self.check_sources]
        item["accepted"] = [asdict(fault) for fault in self.accepted]
        return {"schema": SCHEMA, **item}

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> Plan:
        """The plan that :meth:`to_json` wrote."""
        values = {key: value for key, value in item.items() if key in cls.__dataclass_fields__}
        values.setdefault("experiments", 0.0)
        values["steps"] = tuple(Step.from_json(step) for step in item["steps"])
        values["engines"] = tuple(item.get("engines", ()))
        values["check_sources"] = tuple(read(CheckSource, source) for source in item.get("check_sources", []))
        values["accepted"] = tuple(read(AcceptedFault, fault) for fault in item.get("accepted", []))
        values["replay"] = Replay(**item["replay"]) if item.get("replay") else None
        return cls(**values)
