"""From a stored run to the plan that repeats one of its steps."""

from __future__ import annotations

import difflib
from dataclasses import replace

from gpucheck import checks
from gpucheck.library.copies import LibraryCopy
from gpucheck.model.errors import UsageError
from gpucheck.model.placement_table import PLACEMENTS
from gpucheck.model.plan import Plan, PlannedEngine, Replay, Step
from gpucheck.model.screened import CHECK as SCREEN
from gpucheck.records.run_folder import Run


def find_step(run: Run, case: str, rank: int | None) -> int:
    """The number of the step that a case id or label names.

    Of several steps with one id, told apart by their conditions, the one that failed is meant.

    Raises:
        UsageError: none, or several.
    """
    steps = run.plan.steps
    found = [number for number, step in enumerate(steps) if case == step.label]
    found = found or [number for number, step in enumerate(steps) if case == step.case.id]
    if len(found) > 1:
        ranks = run.ranks if rank is None else (rank,)
        found = [n for n in found if any(run.records[(n, r)].outcome.failed for r in ranks)] or found
    if not found:
        known = list(dict.fromkeys(step.label for step in steps))
        near = difflib.get_close_matches(case, known, n=3) or known[:3]
        raise UsageError(f"{run.folder} has no case {case!r}; it has {len(known)}, for example {', '.join(near)}")
    if len(found) > 1:
        labels = ", ".join(repr(steps[number].label) for number in found)
        raise UsageError(f"case {case!r} ran under several conditions; name one of {labels}")
    return found[0]


def find_rank(run: Run, step: int, rank: int | None) -> int:
    """The rank asked for, else the first on which the step failed, else 0.

    Raises:
        UsageError: the run has no such rank.
    """
    if rank is None:
        return next((r for r in run.ranks if run.records[(step, r)].outcome.failed), 0)
    if rank not in run.ranks:
        last = run.plan.world_size - 1
        raise UsageError(f"--rank {rank}: the run in {run.folder} has rank 0" + (f" to {last}" if last else " only"))
    return rank


def repeated(
    plan: Plan,
    step: int,
    rank: int,
    copy: LibraryCopy | None,
    *,
    save: bool,
    timeout: float | None,
    engine: PlannedEngine | None = None,
) -> Plan:
    """The plan of a replay: the step alone, on the ranks of one node, without experiments.

    Raises:
        UsageError: the step ran under a placement that only another version of gpucheck has, on several nodes at
            once, or in a screen.
    """
    if plan.steps[step].case.check == SCREEN:
        name = plan.steps[step].case["datapath"]
        raise UsageError(f"{name} is a datapath of a screen: run it again with gpucheck screen --datapaths '{name}'")
    placement = plan.steps[step].conditions.placement
    if placement not in PLACEMENTS:
        raise UsageError(f"the case ran under placement {placement}, which this gpucheck lacks: use a newer one")
    if plan.steps[step].together and plan.nnodes > 1:
        raise UsageError(
            f"{plan.steps[step].label} ran on {plan.world_size} ranks of {plan.nnodes} nodes together, and a replay "
            "has those of one node.\n  try  gpucheck run with --case, on as many nodes"
        )
    library = plan.library
    if copy:
        library = {**library, "root": str(copy.root), "package": str(copy.package)}
    return replace(
        plan,
        timeout=plan.timeout if timeout is None else timeout,
        experiments=0.0,
        bench=False,
        screen=0.0,
        library=library,
        steps=(_whole(plan.steps[step]),),
        replay=Replay(rank, save),
        engines=(engine,) if engine else (),
        accepted=(),  # it looks at what is wrong
        judge="both",
    )


def _whole(step: Step) -> Step:
    """The step with parameters that its check did not have when the run was planned, at their defaults."""
    params = {**checks.load(step.case.check).spec.defaults, **step.case.params}
    return replace(step, case=replace(step.case, params=params))
