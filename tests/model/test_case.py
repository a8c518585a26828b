from __future__ import annotations

import json
import math

import pytest

from gpucheck.model.case import Case, CheckSpec, Param, Scalar

SPEC = CheckSpec(
    name="probe",
    summary="",
    rows=("kind",),
    params=(
        Param("kind", "plain", "", ("plain", "fancy")),
        Param("m", 64, "", label="m"),
        Param("parts", 0, "", label="p"),
        Param("window", 0, ""),
        Param("bias", False, ""),
        Param("fast", True, ""),
        Param("alpha", 1.5, "", label="alpha"),
        Param("load", "even", "", ("even", "odd"), label="load-"),
    ),
)


def case_id(**params: Scalar) -> str:
    return SPEC.case(params, "exact", 0).id


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, "probe/plain/m64/exact"),
        ({"kind": "fancy", "m": 3}, "probe/fancy/m3/exact"),
        ({"m": 0}, "probe/plain/m0/exact"),
        ({"parts": 4, "window": 20}, "probe/plain/m64-p4-window20/exact"),
        ({"bias": True}, "probe/plain/m64-bias/exact"),
        ({"fast": False}, "probe/plain/m64-nofast/exact"),
        ({"load": "odd", "alpha": 2.0}, "probe/plain/m64-alpha2-load-odd/exact"),
    ],
)
def test_ids_are_stable(params: dict[str, Scalar], expected: str) -> None:
    """Replay commands and stored runs hold ids: changing one breaks them."""
    assert case_id(**params) == expected


def test_ids_tell_floats_apart_that_differ_in_the_last_digit() -> None:
    near = [1.702, 1.7020001, math.nextafter(1.702, 2.0), 1.7, 17020000.25, 17020000.5, 1e-7]
    assert len({case_id(alpha=value) for value in near}) == len(near)
    assert case_id(alpha=7) == case_id(alpha=7.0)


@pytest.mark.parametrize(
    ("default", "good", "bad"),
    [
        (1, [0, -3, 10**12], [1.0, True, False, "1", None, [1], math.nan]),
        (1.0, [0, -3, 0.5], [True, "1", None, math.nan, math.inf, -math.inf, [1.0]]),
        (False, [True, False], [0, 1, "true", None, 0.0]),
        ("a", ["", "b"], [1, True, None, ["a"], 1.0]),
    ],
)
def test_params_accept_their_type_only(default: Scalar, good: list[object], bad: list[object]) -> None:
    param = Param("x", default, "")
    assert all(param.accepts(value) for value in good)
    assert not [value for value in bad if param.accepts(value)]
    assert "one of" not in param.expected()


def test_choices_hold_for_values_of_the_right_type() -> None:
    param = Param("x", 0, "", (0, 1, 2))
    assert param.accepts(2) and not param.accepts(3) and not param.accepts(True) and not param.accepts(1.0)
    assert param.expected() == "one of 0, 1, 2"


def test_defaults_are_filled_in_and_rows_come_from_params() -> None:
    case = SPEC.case({"kind": "fancy"}, "normal", 7)
    assert case.row == "probe fancy" and case["m"] == 64 and case["alpha"] == 1.5 and case.seed == 7


def test_json_round_trip() -> None:
    case = SPEC.case({"bias": True, "alpha": 2.5}, "normal", 2**63)
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_input_seeds_differ_between_cases_and_between_run_seeds() -> None:
    cases = [SPEC.case({"m": m}, data, seed) for m in range(50) for data in ("exact", "normal") for seed in (0, 1)]
    seeds = {case.input_seed for case in cases}
    assert len(seeds) == len(cases) and all(0 <= seed < 2**63 for seed in seeds)
    assert SPEC.case({"m": 5}, "exact", 0).input_seed == SPEC.case({"m": 5}, "exact", 0).input_seed


def test_the_input_seed_is_the_same_on_every_machine() -> None:
    """Pinned: a replay on another machine must draw the same data."""
    assert SPEC.case({}, "exact", 0).input_seed == 4118320400866580042
