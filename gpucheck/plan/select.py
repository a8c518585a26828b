"""Narrowing a scenario from the command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from gpucheck.model.errors import NothingToRunError, UsageError
from gpucheck.plan.scenario import PLACEMENTS, Scenario


def select(
    scenario: Scenario, checks: Sequence[str] = (), cases: Sequence[str] = (), placement: str | None = None
) -> Scenario:
    """The scenario with only these checks and these case ids, all under one placement where one is given.

    A case that is moved to another placement keeps its stress but not what was expected of it there.

    Raises:
        UsageError: a check, case or placement that does not exist.
        NothingToRunError: nothing is left.
    """
    from gpucheck.checks import names

    if placement is not None and placement not in PLACEMENTS:
        raise UsageError(f"--placement is {placement!r}, expected one of {', '.join(PLACEMENTS)}")
    for name in checks:
        if name not in names():
            raise UsageError(f"--checks: unknown check {name!r}; known: {', '.join(names())}")
    known = {step.case.id for step in scenario.steps}
    for case in cases:
        if case not in known:
            near = difflib.get_close_matches(case, known, n=3)
            hint = f"; close: {', '.join(near)}" if near else ""
            raise UsageError(
                f"--case: scenario {scenario.name} has no case {case!r}{hint}; "
                f"see `gpucheck list --cases --scenario {scenario.name}`"
            )
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
    if placement is not None:
        moved = [replace(step, placement=placement, expect=None) for step in steps]
        native = [step for step in steps if step.placement == placement]
        steps = tuple({step.key: step for step in (*moved, *native)}.values())
    return replace(scenario, steps=steps)
