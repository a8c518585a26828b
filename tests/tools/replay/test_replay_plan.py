from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpucheck.library.copies import LibraryCopy
from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UsageError
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome
from gpucheck.tools.replay.replay_plan import find_rank, find_step, repeated
from tests.conftest import Synthetic

COPY = LibraryCopy(Path("/new"), Path("/new/triton_kernels"), "path", "f" * 64, "B", "v3.5")


def twice(synthetic: Synthetic) -> Plan:
    """A plan with one case under two conditions, then another case."""
    first, second = synthetic.plan(cases=2).steps
    plan: Plan = synthetic.plan(ranks=2, steps=(first, replace(first, conditions=Conditions("peer")), second))
    return plan


def test_an_id_a_label_and_the_one_that_failed(synthetic: Synthetic) -> None:
    run = synthetic.run(twice(synthetic), {(1, 1): Outcome.MISMATCH})
    assert find_step(run, "matmul/1/exact", None) == 2
    assert find_step(run, "matmul/0/exact (peer)", None) == 1
    assert find_step(run, "matmul/0/exact", None) == 0, "the label without conditions is the usual step"
    peers = replace(run.plan.steps[0], conditions=Conditions("visible"))
    run.plan = replace(run.plan, steps=(peers, *run.plan.steps[1:]))
    assert find_step(run, "matmul/0/exact", None) == 1 == find_step(run, "matmul/0/exact", 1)
    with pytest.raises(UsageError, match=r"several conditions; name one of 'matmul/0/exact \(visible\)', "):
        find_step(run, "matmul/0/exact", 0)


def test_a_case_that_is_not_there_names_close_ones(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=2))
    with pytest.raises(UsageError, match="runs/x has no case 'matmul/1/exakt'; it has 2, for example matmul/1/exact"):
        find_step(run, "matmul/1/exakt", None)


def test_the_rank_asked_for_or_the_first_that_failed(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(ranks=4), {(0, 2): Outcome.CRASH, (0, 3): Outcome.MISMATCH})
    assert [find_rank(run, 0, rank) for rank in (None, 3, 0)] == [2, 3, 0] and find_rank(run, 1, None) == 0
    with pytest.raises(UsageError, match="--rank 4: the run in runs/x has rank 0 to 3"):
        find_rank(run, 0, 4)
    with pytest.raises(UsageError, match="has rank 0 only"):
        find_rank(synthetic.run(synthetic.plan()), 0, 1)


def test_a_replay_has_one_step_no_experiments_and_keeps_what_defines_it(synthetic: Synthetic) -> None:
    plan = replace(twice(synthetic), experiments=30.0)
    again = repeated(plan, 1, 1, COPY, save=True, timeout=None)
    (step,) = again.steps
    assert replace(step, case=plan.steps[1].case) == plan.steps[1] and again.experiments == 0
    assert again.replay is not None and (again.replay.rank, again.replay.save) == (1, True)
    assert again.library == {**plan.library, "root": "/new", "package": "/new/triton_kernels"}
    assert (again.seed, again.nproc, again.timeout) == (plan.seed, plan.nproc, plan.timeout)
    assert Plan.from_json(again.to_json()) == again
    assert repeated(plan, 1, 1, COPY, save=False, timeout=3.0).timeout == 3.0


def test_a_parameter_that_came_after_the_run_takes_its_default(synthetic: Synthetic) -> None:
    plan = synthetic.plan()
    known = replace(plan.steps[0], case=replace(plan.steps[0].case, params={"m": 33}))
    (step,) = repeated(replace(plan, steps=(known,)), 0, 0, COPY, save=False, timeout=None).steps
    assert (step.case["m"], step.case["operands"]) == (33, "dense") and step.case.id == known.case.id


def test_a_datapath_of_a_screen_is_run_again_by_a_screen(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1)
    case = replace(plan.steps[0].case, check="screen", params={"datapath": "fma fp32"})
    screened = replace(plan, steps=(replace(plan.steps[0], case=case),))
    with pytest.raises(UsageError, match="gpucheck screen --datapaths 'fma fp32'"):
        repeated(screened, 0, 0, None, save=False, timeout=None)
