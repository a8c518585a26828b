"""Binding a scenario to a library, a machine and options: the plan of a run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpucheck.library.copies import LibraryCopy
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, Step
from gpucheck.plan.conditions import needs_gpus
from gpucheck.plan.scenario import Scenario


def bound_steps(scenario: Scenario, device: str) -> tuple[Step, ...]:
    """The steps on a device.

    Without GPUs ``pinned`` and ``visible`` become ``cpu``, and a case that both share runs once; a step whose point
    needs a GPU stays as it is and says why it cannot run.
    """
    if device != "cpu":
        return scenario.steps
    by_key: dict[tuple[Conditions, str], Step] = {}
    for step in scenario.steps:
        bound = _without_gpus(step)
        by_key.setdefault(bound.key, bound)
    return tuple(by_key.values())


def _without_gpus(step: Step) -> Step:
    reason = needs_gpus(step.conditions)
    if reason:
        return replace(step, inapplicable=reason)
    if step.conditions.whole_node:
        return step
    return replace(step, conditions=replace(step.conditions, placement="cpu"))


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
    case_timeout: float | None = None,
    experiments: float | None = None,
    duration: float = 0.0,
    isolate: str = "rank",
    debug: bool = False,
    patches: Sequence[str] = (),
) -> Plan:
    """The plan of a run; for its steps see :func:`bound_steps`.

    Args:
        timeout: for the whole run; by default the scenario's and, behind it, the time for which passes are begun.
        patches: the files of the patches that the library is a patched copy by.
    """
    return Plan(
        id=uuid.uuid4().hex[:12],
        scenario=scenario.name,
        title=scenario.title,
        seed=scenario.seed,
        created=time.time(),
        device=device,
        nproc=nproc,
        nnodes=nnodes,
        timeout=scenario.timeout + duration if timeout is None else timeout,
        case_timeout=scenario.case_timeout if case_timeout is None else case_timeout,
        experiments=scenario.experiments if experiments is None else experiments,
        library={
            "root": str(library.root),
            "package": str(library.package),
            "origin": library.origin,
            "content": library.content,
            "name": library.name,
            "generation": library.generation,
            "patches": list(patches),
        },
        environment=environment,
        command=command,
        steps=bound_steps(scenario, device),
        isolate=isolate,
        debug=debug,
        duration=duration,
    )
