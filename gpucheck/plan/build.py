"""Binding a scenario to a library, a machine and options: the plan of a run."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from gpucheck.library.copies import LibraryCopy
from gpucheck.model.plan import Plan, Step
from gpucheck.plan.scenario import Scenario


def bound_steps(scenario: Scenario, device: str) -> tuple[Step, ...]:
    """The steps on a device: without GPUs every placement becomes ``cpu``, and a case that several share runs once."""
    if device != "cpu":
        return scenario.steps
    by_case: dict[str, Step] = {}
    for step in scenario.steps:
        by_case.setdefault(step.case.id, replace(step, placement="cpu"))
    return tuple(by_case.values())


def build(
    scenario: Scenario,
    library: LibraryCopy,
    *,
    device: str,
    nproc: int,
    nnodes: int,
    environment: dict[str, Any],
    command: list[str],
    timeout: float | None = None,
) -> Plan:
    """The plan of a run; for its steps see :func:`bound_steps`."""
    return Plan(
        id=uuid.uuid4().hex[:12],
        scenario=scenario.name,
        title=scenario.title,
        seed=scenario.seed,
        created=time.time(),
        device=device,
        nproc=nproc,
        nnodes=nnodes,
        timeout=scenario.timeout if timeout is None else timeout,
        case_timeout=scenario.case_timeout,
        library={
            "root": str(library.root),
            "package": str(library.package),
            "origin": library.origin,
            "content": library.content,
            "name": library.name,
            "generation": library.generation,
        },
        environment=environment,
        command=command,
        steps=bound_steps(scenario, device),
    )
