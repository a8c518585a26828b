from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import ExpectedFailure, Plan, Step
from gpucheck.model.record import Ceilings, Cost, Heat, Launch, Outcome, Record, Violation
from tests.conftest import Synthetic


def full(synthetic: Synthetic) -> Record:
    launch = Launch("_matmul_ogs", 2, 1, ["cuda:1"], 7, "abc", "sm_90", 1024, 8, [3, 1, 1])
    return synthetic.record(
        synthetic.plan(),
        1,
        0,
        Outcome.MISMATCH,
        mismatches=[
            synthetic.mismatch(),
            synthetic.mismatch(got=None, expected=math.inf, ulps=None),
            synthetic.mismatch(heat=Heat([2, 2], [1, 1], [0, 2], 2, [[0, 1000], [0, 0]])),
        ],
        violations=[Violation("guard", "12 bytes")],
        launches=[launch],
        tiles={"y": ["a", "b"]},
        timings={"call": 1e-3},
        cost=Cost(2e9, 3e6),
        ceilings=Ceilings(7e14, 3e12),
        seconds={"compile": 0.25},
        tightness=0.5,
        traceback="Traceback\n",
    )


def test_json_round_trip(synthetic: Synthetic) -> None:
    record = full(synthetic)
    item = json.loads(json.dumps(record.to_json()))
    assert Record.from_json(item) == record
    assert (item["event"], item["schema"], item["outcome"]) == ("result", 1, "mismatch")


@pytest.mark.parametrize("damaged", [None, {}, {"flops": 1.0}, {"flops": 1.0, "bytes": "many"}, "x", [1.0, 2.0], 3])
def test_a_record_is_not_lost_for_a_damaged_cost(synthetic: Synthetic, damaged: object) -> None:
    record = full(synthetic)
    item = {**record.to_json(), "cost": damaged, "ceilings": damaged}
    assert Record.from_json(item) == replace(record, cost=None, ceilings=None)
    newer = {"flops": 2e9, "bytes": 3e6, "joules": 1.0}
    assert Record.from_json({**item, "cost": newer}) == replace(record, ceilings=None)


def test_what_the_ceilings_allow() -> None:
    assert Ceilings(flops=1e12, bytes=1e9).seconds(Cost(2e12, 4e9)) == (2.0, 4.0)


def test_keys_of_newer_versions_are_left_out(synthetic: Synthetic) -> None:
    item = full(synthetic).to_json()
    item["colour"] = "blue"
    for part in ("mismatches", "violations", "launches"):
        item[part][0]["smell"] = 1
    item["mismatches"][2]["heat"]["smoke"] = 1
    assert Record.from_json(item) == full(synthetic)


def test_call_times_that_earlier_versions_named_speed_are_read(synthetic: Synthetic) -> None:
    item = full(synthetic).to_json()
    item["speed"] = item.pop("timings")
    assert Record.from_json(item) == full(synthetic)


def test_mismatches_of_versions_without_a_map(synthetic: Synthetic) -> None:
    item = full(synthetic).to_json()
    for part in item["mismatches"]:
        del part["heat"]
    assert [mismatch.heat for mismatch in Record.from_json(item).mismatches] == [None] * 3
    item["mismatches"][0]["heat"] = {"shape": [2, 2]}
    assert Record.from_json(item).mismatches[0].heat is None


def test_an_outcome_that_is_not_known_is_an_error_not_a_pass(synthetic: Synthetic) -> None:
    with pytest.raises(ValueError, match="splendid"):
        Record.from_json({**full(synthetic).to_json(), "outcome": "splendid"})


def test_only_the_code_under_test_fails() -> None:
    failed = {outcome for outcome in Outcome if outcome.failed}
    assert failed == {Outcome.MISMATCH, Outcome.VIOLATION, Outcome.ERROR, Outcome.CRASH, Outcome.HANG}


def test_plan_round_trip(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=3, ranks=2, optional=[1], nnodes=4)
    item = json.loads(json.dumps(plan.to_json()))
    again = Plan.from_json(item)
    assert again == plan and again.world_size == 8
    assert Plan.from_json({**item, "novelty": 1}) == plan
    assert [step.case.id for step in again.steps] == [step.case.id for step in plan.steps]
    assert replace(again.steps[1], optional=False) != plan.steps[1]


def test_steps_round_trip_and_older_ones_take_the_defaults(synthetic: Synthetic) -> None:
    (step,) = synthetic.plan(cases=1).steps
    conditions = Conditions("peer", "initialised", late=True, repeat=3)
    full = replace(step, conditions=conditions, expect=ExpectedFailure("wrong device context", "others"))
    full = replace(full, inapplicable="needs GPUs")
    assert Step.from_json(json.loads(json.dumps(full.to_json()))) == full
    kept = ("placement", "optional", *step.case.to_json())
    assert Step.from_json({key: value for key, value in step.to_json().items() if key in kept}) == step


def test_launches_away_from_their_tensors() -> None:
    def away(device: int | None, *arguments: str) -> list[str]:
        return Launch("k", 1, device, list(arguments), 0, "", "", 0, 0, []).away

    assert away(0, "cuda:0") == away(1) == away(None, "cuda:1", "cpu") == away(0, "cpu") == []
    assert away(0, "cpu", "cuda:0", "cuda:1", "cuda:3") == ["cuda:1", "cuda:3"]
