"""Binding a scenario to a library, a machine and options: the plan of a run."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from gpucheck.checks.base import JointCheck
from gpucheck.host.resources import available_memory
from gpucheck.library.copies import LibraryCopy
from gpucheck.model import canary
from gpucheck.model.accepted import AcceptedFault
from gpucheck.model.check_source import CheckSource
from gpucheck.model.conditions import LONELY, Conditions
from gpucheck.model.plan import NO_LIBRARY, Environment, ExpectedFailure, Plan, PlannedEngine, PlannedLibrary, Step
from gpucheck.plan.scenario import Scenario
from gpucheck.plan.scenario_conditions import needs_gpus


def this_machine(package: Path | None) -> Environment:
    """What a plan says of the machine that it is made on.

    Args:
        package: of the library under test; None where there is none.
    """
    from gpucheck.host.env_vars import variables
    from gpucheck.host.software import software

    return {
        "software": software(package),
        "host": os.uname().nodename,
        "cpus": len(os.sched_getaffinity(0)),
        "variables": variables(),
    }


def bound_steps(scenario: Scenario, device: str) -> tuple[Step, ...]:
    """The steps on a device, with the canary behind the last one whose process it can share.

    Without GPUs a placement becomes what its row says, and a case that several then share runs once; a step whose point
    needs a GPU stays as it is and says why it cannot run.
    """
    steps = _with_canary(scenario) if scenario.canary else scenario.steps
    if device != "cpu":
        return steps
    by_key: dict[tuple[Conditions, str], Step] = {}
    for step in steps:
        bound = _without_gpus(step)
        by_key.setdefault(bound.key, bound)
    return tuple(by_key.values())


def _with_canary(scenario: Scenario) -> tuple[Step, ...]:
    """The steps with the canary at the end, or before those that need a process of another kind: each takes a start."""
    steps, last = scenario.steps, _canary(scenario.seed)
    shared = [step.conditions.lifelong == last.conditions.lifelong for step in steps]
    place = len(steps) - shared[::-1].index(True) if any(shared) else len(steps)
    return (*steps[:place], last, *steps[place:])


def _canary(seed: int) -> Step:
    from gpucheck import checks

    case = checks.load(canary.CHECK).spec.case(canary.PARAMS, "exact", seed)
    return Step(case, expect=ExpectedFailure())


def _without_gpus(step: Step) -> Step:
    reason = needs_gpus(step.conditions)
    if reason:
        return replace(step, inapplicable=reason)
    return replace(step, conditions=replace(step.conditions, placement=step.conditions.placed.without_gpus))


def with_company(steps: Iterable[Step], ranks: int) -> tuple[Step, ...]:
    """The steps for so many ranks: one rank cannot run what ranks run together."""
    return tuple(
        replace(step, inapplicable=LONELY) if step.together and ranks < 2 and not step.inapplicable else step
        for step in steps
    )


def with_memory(steps: Iterable[Step], device: str, nproc: int, ranks: int) -> tuple[Step, ...]:
    """The steps, where those that the ranks of a node have no memory for say so: on the CPU it is that of the host.

    Else the kernel ends a process of whoever has most, and the case is nobody's fault.
    """
    free = available_memory() if device == "cpu" else None
    return tuple(step if free is None else _with_memory(step, free, nproc, ranks) for step in steps)


def _with_memory(step: Step, free: int, nproc: int, ranks: int) -> Step:
    from gpucheck import checks

    check = checks.load(step.case.check) if step.together and not step.inapplicable else None
    need = nproc * check.host_memory(step.case.at(0, ranks)) if isinstance(check, JointCheck) else 0
    if need <= free:
        return step
    told = f"on the CPU its {nproc} ranks take up to {need / (1 << 30):.1f} GiB of memory"
    return replace(step, inapplicable=f"{told}, and {free / (1 << 30):.1f} GiB are free")


def needing_library(scenario: Scenario, device: str) -> list[str]:
    """The checks of a scenario that call the library, in cases that this device can run."""
    from gpucheck import checks

    names = dict.fromkeys(step.case.check for step in bound_steps(scenario, device) if not step.inapplicable)
    return [name for name in names if checks.load(name).needs_library]


def judged_by(scenario: Scenario) -> str:
    """Whose failures fail a run, where nothing else is asked for: what the pod serves by, if that is tested."""
    return "engine" if any(step.own_engine for step in scenario.steps) else "library"


def _described(library: LibraryCopy | None, patches: Sequence[str]) -> PlannedLibrary:
    """What a plan says of the library."""
    if library is None:
        return NO_LIBRARY
    return {
        "root": str(library.root),
        "package": str(library.package),
        "origin": library.origin,
        "content": library.content,
        "name": library.name,
        "generation": library.generation,
        "patches": list(patches),
    }


def build(
    scenario: Scenario,
    library: LibraryCopy | None,
    *,
    device: str,
    nproc: int,
    nnodes: int,
    environment: Environment,
    command: list[str],
    timeout: float | None = None,
    case_timeout: float | None = None,
    experiments: float | None = None,
    duration: float = 0.0,
    isolate: str = "rank",
    debug: bool = False,
    patches: Sequence[str] = (),
    check_sources: Sequence[CheckSource] = (),
    accepted: Sequence[AcceptedFault] = (),
    engines: Sequence[PlannedEngine] = (),
    judge: str | None = None,
) -> Plan:
    """The plan of a run; for its steps see :func:`bound_steps`.

    Args:
        library: None where no case needs one.
        timeout: for the whole run; by default the scenario's and, behind it, the time for which passes are begun.
        patches: the files of the patches that the library is a patched copy by.
        check_sources: those that are known; the plan holds those of its cases.
        accepted: faults that do not fail the run.
        engines: those at hand; likewise.
        judge: whose failures fail the run; by default the engine's where it has cases.
    """
    steps = with_company(bound_steps(scenario, device), nproc * nnodes)
    steps = with_memory(steps, device, nproc, nproc * nnodes)
    used = {step.case.check for step in steps}
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
        library=_described(library, patches),
        environment=environment,
        command=command,
        steps=steps,
        check_sources=tuple(source for source in check_sources if used & {*source.checks}),
        bench=scenario.bench,
        straggler=scenario.straggler,
        compile_ahead=scenario.compile_ahead,
        screen=scenario.screen,
        isolate=isolate,
        debug=debug,
        duration=duration,
        accepted=tuple(accepted),
        engines=tuple(each for each in engines if any(step.conditions.engine == each["name"] for step in steps)),
        judge=judge or judged_by(scenario),
    )
