"""The scenario of checks that were given without one."""

from __future__ import annotations

from collections.abc import Sequence

from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Step
from gpucheck.plan.scenario import CASE_TIMEOUT, EXPERIMENTS, TIMEOUT, Scenario

OF_PAIRS = 1.0  # s of experiments: who hands in a candidate waits for its verdict


def implied(sources: Sequence[CheckSource], seed: int | None) -> Scenario:
    """The usual cases of every check of the sources, which are active, with each kind of data they allow."""
    from gpucheck.checks import load

    names = [name for source in sources for name in source.checks]
    steps = {}
    for name in names:
        check = load(name)
        for usual in check.usual:
            params = {**check.spec.defaults, **usual}
            for data in check.spec.usual_data:
                if check.reason_against(params, data) is None:
                    step = Step(check.spec.case(params, data, seed or 0), Conditions(engine=check.engine))
                    steps[step.key] = step
    pairs = all(source.kind is SourceKind.PROBLEM for source in sources)
    experiments = min(EXPERIMENTS, OF_PAIRS) if pairs else EXPERIMENTS
    title = f"the usual cases of {', '.join(names)}"
    return Scenario(
        "usual", None, title, seed or 0, TIMEOUT, CASE_TIMEOUT, experiments, tuple(steps.values()), implied=True
    )
