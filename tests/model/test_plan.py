from __future__ import annotations

import json
from dataclasses import replace
from typing import get_type_hints

from gpucheck.model.accepted import AcceptedFault, Region
from gpucheck.model.case import Case
from gpucheck.model.plan import Environment, Plan, PlannedLibrary
from tests.conftest import Synthetic


def test_library_and_environment_are_plain_json_and_keys_of_another_version_stay(synthetic: Synthetic) -> None:
    plan = synthetic.plan(environment={"software": {"torch": None}, "host": "a", "cpus": 2, "variables": {"X": "1"}})
    line = json.loads(json.dumps(plan.to_json()))
    assert line["library"] == plan.library and line["environment"] == plan.environment
    assert "patches" not in line["library"] and {*line["environment"]} == {*get_type_hints(Environment)}
    line["library"]["wheel"], line["environment"]["kernel"] = "w", "6.1"
    read = Plan.from_json(line)
    assert json.loads(json.dumps(read.to_json())) == line


def test_the_library_of_an_old_plan_has_all_that_its_type_asks_for(synthetic: Synthetic) -> None:
    assert {*synthetic.plan().library} == PlannedLibrary.__required_keys__


def test_accepted_faults_travel_with_the_plan(synthetic: Synthetic) -> None:
    """Other nodes and later reports have them from it; older plans have none."""
    region = Region("y", {"expert": [31]}, [[0, 3], [0, 63]], 12, 256)
    known = {"case": "a", "ranks": [0], "cause": "crash", "outcome": "mismatch", "shows": ["NaN"], "regions": [region]}
    fault = AcceptedFault(**known, seed=0, content={}, reason="why", until="2027-01-31", file="f.toml")  # type: ignore[arg-type]
    item = json.loads(json.dumps(synthetic.plan(accepted=(fault,)).to_json()))
    (read,) = Plan.from_json(item).accepted
    assert read == fault and read.file == "f.toml"
    del item["accepted"]
    assert Plan.from_json(item).accepted == ()


def test_the_largest_steps_of_each_check_come_in_turns(synthetic: Synthetic) -> None:
    plan = synthetic.plan()
    sizes = [("a", 3), ("a", 40), ("b", 5), ("a", 7), ("b", 2), ("c", 1), ("a", 20)]
    cases = [Case(check, {"m": size, "flag": True, "kind": "x"}, "exact", "", "", 0) for check, size in sizes]
    plan = replace(plan, steps=tuple(replace(plan.steps[0], case=case) for case in cases))
    assert plan.largest(range(7), 2) == [1, 2, 5, 6, 4]
    assert plan.largest([0, 3, 4], 1) == [3, 4]
