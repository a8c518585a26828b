"""Narrowing a scenario from the command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from gpucheck.model.errors import NothingToRunError, UsageError
from gpucheck.plan.scenario import Scenario


def select(scenario: Scenario, checks: Sequence[str] = (), cases: Sequence[str] = ()) -> Scenario:
    """The scenario with only these checks and these case ids.

    Raises:
        UsageError: a check or case that does not exist.
        NothingToRunError: nothing is left.
    """
    from gpucheck.checks import CHECKS

    for name in checks:
        if name not in CHECKS:
            raise UsageError(f"--checks: unknown check {name!r}; known: {', '.join(CHECKS)}")
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
    return replace(scenario, steps=steps)
