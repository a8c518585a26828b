"""Which joint cases are tried again: all ranks choose the same ones of what all have told."""

from __future__ import annotations

from dataclasses import replace

from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.plan import ExpectedFailure, Plan
from gpucheck.worker.supervisor.joint_experiments import MOST_STEPS, chosen
from tests.conftest import Synthetic

JOINT = (Conditions(process_group=TOGETHER),)


def plan(synthetic: Synthetic, cases: int = 3, **changes: object) -> Plan:
    made: Plan = synthetic.plan(cases=cases, ranks=3, under=JOINT, **changes)
    return made


def test_one_case_of_each_row_and_way_to_fail_is_tried(synthetic: Synthetic) -> None:
    told = {0: {}, 1: {"0": ["mismatch", "repeat"], "1": ["mismatch", "repeat"]}, 2: {"2": ["crash", "repeat"]}}
    assert chosen(plan(synthetic, one_row=True), told) == {0: {"repeat"}, 2: {"repeat"}}
    assert chosen(plan(synthetic), told) == {0: {"repeat"}, 1: {"repeat"}, 2: {"repeat"}}


def test_what_any_rank_can_learn_from_is_tried(synthetic: Synthetic) -> None:
    told = {0: {"1": ["mismatch", "repeat", "in step"]}, 1: {"1": ["hang"]}, 2: {}}
    assert chosen(plan(synthetic), told) == {1: {"repeat", "in step"}}


def test_what_must_fail_is_not_tried(synthetic: Synthetic) -> None:
    made = plan(synthetic)
    made = replace(made, steps=(replace(made.steps[0], expect=ExpectedFailure()), *made.steps[1:]))
    assert chosen(made, {0: {"0": ["mismatch", "repeat"]}, 1: {}, 2: {}}) == {}


def test_no_more_are_tried_than_the_most(synthetic: Synthetic) -> None:
    told = {0: {str(step): [f"way {step}", "repeat"] for step in range(MOST_STEPS + 4)}, 1: {}, 2: {}}
    assert list(chosen(plan(synthetic, cases=MOST_STEPS + 4), told)) == [*range(MOST_STEPS)]
