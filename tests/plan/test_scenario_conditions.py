"""Which conditions go together and which need GPUs; scenarios hold their combinations to it."""

from __future__ import annotations

from dataclasses import fields

import pytest

from gpucheck.model.conditions import CACHES, CONSUMERS, PROCESS_GROUPS, STREAMS, Conditions
from gpucheck.model.placement_table import scenario_placements
from gpucheck.plan.scenario_conditions import KEYS, conflict, needs_gpus

EXPERIMENTS_ONLY = {"guarded", "alone", "swap", "in_step"}


def test_every_condition_can_be_set_by_a_scenario_or_is_an_experiments() -> None:
    assert {field.name for field in fields(Conditions)} == {*KEYS, *EXPERIMENTS_ONLY}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("placement", scenario_placements()),
        ("process_group", PROCESS_GROUPS),
        ("consumer", CONSUMERS),
        ("stream", STREAMS),
        ("cache", CACHES),
    ],
)
def test_words_are_accepted_and_nothing_else(key: str, values: tuple[str, ...]) -> None:
    accepts, words = KEYS[key]
    assert all(accepts(value) for value in values) and words == "one of " + ", ".join(values)
    assert not any(accepts(value) for value in ("", None, True, values[0].upper(), 1))


def test_numbers_are_whole_and_truths_are_no_numbers() -> None:
    assert [value for value in (0, 1, 10_000, 10_001, 2.0, True, "3") if KEYS["repeat"][0](value)] == [1, 10_000]
    assert [value for value in (True, False, 0, 1, "true") if KEYS["late"][0](value) and type(value) is bool] == [
        True,
        False,
    ]


def test_what_a_server_does_has_no_conflict_and_needs_no_gpu() -> None:
    assert conflict(Conditions()) == needs_gpus(Conditions()) == Conditions().words == ""
    assert needs_gpus(Conditions("visible")) == ""


@pytest.mark.parametrize("placement", scenario_placements())
def test_placements_on_a_machine_without_gpus(placement: str) -> None:
    runs = placement in ("pinned", "visible", "threads")
    assert needs_gpus(Conditions(placement)) == ("" if runs else f"placement {placement} needs GPUs")


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(late=True),
        Conditions(consumer="prompt"),
        Conditions(stream="side"),
        Conditions(cache="cold"),
        Conditions(cache="fresh"),
        Conditions(warm_up=True),
        Conditions(synchronised=True),
    ],
)
def test_what_means_nothing_without_gpus_says_so(conditions: Conditions) -> None:
    assert needs_gpus(conditions)


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions("threads", "none", consumer="delayed", repeat=3),
        Conditions("pinned", "initialised", concurrency=4),
        Conditions("pinned", consumer="delayed"),
    ],
)
def test_what_runs_without_gpus_as_it_is(conditions: Conditions) -> None:
    assert conflict(conditions) == needs_gpus(conditions) == ""
