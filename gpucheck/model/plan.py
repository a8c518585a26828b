"""What a run was asked to do: the content of ``plan.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gpucheck.model.case import Case
from gpucheck.model.record import SCHEMA
from gpucheck.model.source import CheckSource

EXPECTED_RANKS = ("all", "others")


@dataclass(frozen=True)
class ExpectedFailure:
    """What a scenario says must go wrong; a case that passes all the same fails the run."""

    cause: str = ""  # "" takes any
    ranks: str = "all"  # one of EXPECTED_RANKS; "others": every rank but the first of each node, which must be clean

    def includes(self, local_rank: int) -> bool:
        """Whether the rank is one that must fail."""
        return self.ranks == "all" or local_rank > 0


@dataclass(frozen=True)
class Step:
    """One case under one placement and stress; the unit a rank works on."""

    case: Case
    placement: str
    optional: bool = False  # library or machine may lack what it needs without making the run inconclusive
    late: bool = False  # the main input is produced on the device right before the launch, behind a delay
    repeat: int = 1  # times the case runs on each rank
    expect: ExpectedFailure | None = None  # None: it must pass
    inapplicable: str = ""  # why the machine at hand cannot run it; such a step is recorded and never run

    @property
    def key(self) -> tuple[str, bool, int, str]:
        """What tells steps apart."""
        return (self.placement, self.late, self.repeat, self.case.id)

    @property
    def conditions(self) -> str:
        """Placement and stress in words, where they are not the usual ones."""
        placement = [self.placement] if self.placement not in ("pinned", "cpu") else []
        return ", ".join([*placement, *(["late"] if self.late else []), *([f"x{self.repeat}"] * (self.repeat > 1))])

    @property
    def label(self) -> str:
        """The case id with the conditions."""
        return self.case.id + (f" ({self.conditions})" if self.conditions else "")

    def to_json(self) -> dict[str, Any]:
        """An item of the steps in ``plan.json``."""
        return {
            "placement": self.placement,
            "optional": self.optional,
            "late": self.late,
            "repeat": self.repeat,
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
            item["placement"],
            item["optional"],
            item.get("late", False),
            item.get("repeat", 1),
            ExpectedFailure(**expect) if expect else None,
            item.get("inapplicable", ""),
        )


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
    library: dict[str, Any]
    environment: dict[str, Any]
    command: list[str]  # what makes this run again, without --case
    steps: tuple[Step, ...]
    check_sources: tuple[CheckSource, ...] = ()  # of checks that are not gpucheck's own

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes

    def local_rank(self, rank: int) -> int:
        """The rank's number on its node."""
        return rank % self.nproc

    def to_json(self) -> dict[str, Any]:
        """The content of ``plan.json``."""
        item = {key: value for key, value in vars(self).items() if key != "steps"}
        item["steps"] = [step.to_json() for step in self.steps]
        item["check_sources"] = [source.to_json() for source in self.check_sources]
        return {"schema": SCHEMA, **item}

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> Plan:
        """The plan that :meth:`to_json` wrote."""
        values = {key: value for key, value in item.items() if key in cls.__dataclass_fields__}
        values["steps"] = tuple(Step.from_json(step) for step in item["steps"])
        values["check_sources"] = tuple(CheckSource.from_json(source) for source in item.get("check_sources", []))
        return cls(**values)
