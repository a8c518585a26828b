"""Narrowing a scenario from the command line."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from gpucheck.model.conditions import PROCESS_GROUPS, TOGETHER, Conditions
from gpucheck.model.errors import NothingToRunError, UsageError
from gpucheck.model.placement_table import scenario_placements
from gpucheck.model.plan import Step
from gpucheck.plan.scenario import Scenario
from gpucheck.plan.scenario_conditions import conflict, reason_against_company


def select(
    scenario: Scenario,
    checks: Sequence[str] = (),
    cases: Sequence[str] = (),
    placement: str | None = None,
    process_group: str | None = None,
    repeat: int | None = None,
) -> Scenario:
    """The scenario with only these checks and these case ids, all under one placement or process group where given.

    A case that is moved keeps its other conditions but not what was expected of it; one that is only repeated more or
    less often keeps that too.

    Raises:
        UsageError: a check, case, placement or process group that does not exist.
        NothingToRunError: nothing is left.
    """
    from gpucheck.checks import names

    _known("--placement", placement, scenario_placements())
    _known("--process-group", process_group, PROCESS_GROUPS)
    for name in checks:
        if name not in names():
            raise UsageError(f"--checks: unknown check {name!r}; known: {', '.join(names())}")
    known = {step.case.id for step in scenario.steps}
    for case in cases:
        if case not in known:
            near = difflib.get_close_matches(case, known, n=3)
            hint = f"; close: {', '.join(near)}" if near else ""
            listed = "gpucheck list --cases " + ("..." if scenario.implied else f"--scenario {scenario.name}")
            raise UsageError(f"--case: scenario {scenario.name} has no case {case!r}{hint}; see `{listed}`")
    steps = tuple(
        step
        for step in scenario.steps
        if (not checks or step.case.check in checks) and (not cases or step.case.id in cases)
    )
    if not steps:
        raise NothingToRunError(
            f"scenario {scenario.name} has no case"
            + (f" of {', '.join(checks)}" if checks else "")
            + "; nothing to run"
        )
    if repeat is not None:
        steps = tuple(replace(step, conditions=replace(step.conditions, repeat=repeat)) for step in steps)
    screen = 0.0 if checks or cases else scenario.screen  # who names what to run means no more than that
    moved = _moved(steps, placement=placement, process_group=process_group)
    return replace(scenario, steps=moved, screen=screen)


def of_engines(scenario: Scenario, engines: Collection[str], *, asked: bool = False) -> Scenario:
    """The scenario without the optional cases of engines that are not at hand: these cost nothing and are not listed.

    Args:
        engines: names of those at hand.
        asked: an option names them, so each must have a case; what is asked for is never left out in silence.

    Raises:
        NothingToRunError: nothing is left.
        UsageError: no case is of an engine that is asked for.
    """
    steps = tuple(
        step
        for step in scenario.steps
        if not (step.optional and step.conditions.engine) or step.conditions.engine in engines
    )
    if scenario.steps and not steps:
        lacking = ", ".join(dict.fromkeys(step.conditions.engine for step in scenario.steps))
        raise NothingToRunError(
            f"all cases chosen of scenario {scenario.name} are of {lacking}, which is not installed here.\n"
            f"  do  install it, or name a release: --engine {scenario.steps[0].conditions.engine}==VERSION"
        )
    idle = sorted(set(engines) - {step.conditions.engine for step in steps}) if asked else []
    if idle:
        raise UsageError(
            f"--engine names {' and '.join(idle)}, and no case chosen of scenario {scenario.name} is computed by it.\n"
            f"  try  gpucheck run serving --engine ..., or --checks {idle[0]}_moe with a scenario that has such cases"
        )
    return replace(scenario, steps=steps)


def _known(option: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise UsageError(f"{option} is {value!r}, expected one of {', '.join(choices)}")


def _moved(steps: tuple[Step, ...], **asked: str | None) -> tuple[Step, ...]:
    """The steps under the conditions asked for; one that is there already keeps what is expected of it."""
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    moved: dict[tuple[Conditions, str], Step] = {}
    for step in steps:
        conditions = replace(step.conditions, **changes)
        if step.together:  # it is about a process group, which it has whatever others have
            conditions = replace(conditions, process_group=TOGETHER)
        if reason := conflict(conditions) or (step.together and reason_against_company(conditions)):
            raise UsageError(f"{step.label} cannot be moved: {reason}; leave it out with --checks or --case")
        native = conditions == step.conditions
        new = step if native else replace(step, conditions=conditions, expect=None)
        if native or new.key not in moved:
            moved[new.key] = new
    return tuple(moved.values())
