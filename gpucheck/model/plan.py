"""What a run was asked to do: the content of ``plan.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpucheck.model.case import Case
from gpucheck.model.record import SCHEMA


@dataclass(frozen=True)
class Step:
    """One case under one placement; the unit a rank works on."""

    case: Case
    placement: str
    optional: bool = False  # library or machine may lack what it needs without making the run inconclusive


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

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes

    def to_json(self) -> dict[str, Any]:
        """The content of ``plan.json``."""
        item = {key: value for key, value in vars(self).items() if key != "steps"}
        item["steps"] = [
            {"placement": step.placement, "optional": step.optional, **step.case.to_json()} for step in self.steps
        ]
        return {"schema": SCHEMA, **item}

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> Plan:
        """The plan that :meth:`to_json` wrote."""
        values = {key: value for key, value in item.items() if key in cls.__dataclass_fields__}
        values["steps"] = tuple(
            Step(Case.from_json(step), step["placement"], step["optional"]) for step in item["steps"]
        )
        return cls(**values)
