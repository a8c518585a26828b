"""The scenario that checks make when they are given without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpucheck import checks
from gpucheck.checks import sources
from gpucheck.model.check_source import CheckSource
from gpucheck.model.errors import UsageError
from gpucheck.plan.default_cases import implied
from gpucheck.plan.scenario import load
from gpucheck.plan.select import select

CHECK = """
from gpucheck.checks.base import Check
from gpucheck.model.case import CheckSpec, Param


class Mine(Check):
    late_inputs = ()
    usual = ({"n": 3}, {"n": 4})
    spec = CheckSpec("mine", "one of mine", (Param("n", 3, "values", label="n"),), ("exact", "normal"))

    def validate(self, params, data):
        return "four values are not exact" if params["n"] == 4 and data == "exact" else None

    def inputs(self, case, generator): return {}
    def reference(self, case, inputs): return {}
    def launch(self, case, prepared, runtime): return {}
    def kernels(self, case, runtime): return ()
    def axes(self, case, inputs): return {}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[list[CheckSource]]:
    (tmp_path / "mine.py").write_text(CHECK)
    found, _ = sources.find([str(tmp_path / "mine.py")], [], [], checks.CHECKS)
    checks.activate(found)
    yield found
    checks.activate([])


def test_every_usual_case_with_every_kind_of_data_that_it_takes(mine: list[CheckSource]) -> None:
    scenario = implied(mine, 5)
    assert [step.case.id for step in scenario.steps] == ["mine/n3/exact", "mine/n3/normal", "mine/n4/normal"]
    assert {step.case.seed for step in scenario.steps} == {5} and scenario.implied
    assert scenario.title == "the usual cases of mine"


def test_late_inputs_are_refused_of_a_check_that_names_none(mine: list[CheckSource], tmp_path: Path) -> None:
    (tmp_path / "late.toml").write_text('[[cases]]\ncheck = "mine"\ndata = "normal"\nlate = [false, true]\n')
    with pytest.raises(UsageError, match="number 1: late inputs need a check that names some in late_inputs, and mine"):
        load(tmp_path / "late.toml")


def test_a_case_that_is_none_of_them_is_answered_with_what_is(mine: list[CheckSource]) -> None:
    with pytest.raises(
        UsageError, match=r"has no case 'mine/n4/exact'; close: mine/n3/exact, mine/n4/normal; see `gpucheck list --cas"
    ):
        select(implied(mine, None), cases=["mine/n4/exact"])
    moved = select(implied(mine, None), placement="peer", process_group="initialised")
    assert {(s.conditions.placement, s.conditions.process_group) for s in moved.steps} == {("peer", "initialised")}


def test_a_scenario_that_says_nothing_of_time_grants_as_much(mine: list[CheckSource], tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('title = "s"\n[[cases]]\ncheck = "mine"\nn = 3\ndata = "exact"\n')
    stated, usual = load(tmp_path / "s.toml"), implied(mine, None)
    for limit in ("timeout", "case_timeout", "experiments"):
        assert getattr(stated, limit) == getattr(usual, limit), limit
