"""The self-test's judgement on a screen: what was planted must be told, on its multiprocessor, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.model.screened import Screened, WrongMultiprocessor
from gpucheck.tools.screen.planted_multiprocessors import PLANTS, datapaths, plants, problems

PLANT = {"rank": 1, "sm": 2, "path": "integer", "bits": 0x80, "chance": 1.0}
PART = Screened("integer", "steps", 4, [0, 1, 2, 3], [8] * 4, 4, 1.0, 1.0, 1.0, "TOP", 0.0, "the CPU")


def wrong(number: int, *bits: str) -> Screened:
    return replace(PART, wrong=[WrongMultiprocessor(number, 1, 2, [*bits])])


RECORD = Record(0, "screen/integer", 1, Outcome.MISMATCH, screened=wrong(2, "0x80"))
FINDING = Finding("faulty multiprocessor: multiprocessor 2 of GPU-1", True, [1], ["integer"], [])


def test_what_was_told_as_it_was_planted_is_right() -> None:
    assert problems(PLANT, RECORD, [FINDING]) == []


@pytest.mark.parametrize(
    "record, findings, words",
    [
        (None, [FINDING], "not there"),
        (replace(RECORD, outcome=Outcome.PASS), [FINDING], "pass, expected mismatch"),
        (
            replace(RECORD, screened=wrong(3)),
            [FINDING],
            "multiprocessors [3]",
        ),
        (
            replace(RECORD, screened=wrong(2, "0x1")),
            [FINDING],
            "bits ['0x1']",
        ),
        (RECORD, [], "called []"),
        (RECORD, [replace(FINDING, ranks=[0, 1])], "called"),
        (RECORD, [replace(FINDING, title="faulty multiprocessor: multiprocessors 2, 3 of GPU-1")], "called"),
        (RECORD, [FINDING, replace(FINDING, title="kernel bug")], "called"),
    ],
)
def test_whatever_is_told_otherwise_is_a_problem(record: Any, findings: list[Finding], words: str) -> None:
    (problem, *_) = problems(PLANT, record, findings)
    assert words in problem


def test_each_fault_is_planted_on_each_rank_and_no_two_on_one_multiprocessor() -> None:
    made = plants([*PLANTS], 3)
    assert len(made) == 3 * len(PLANTS)
    assert len({(plant["rank"], plant["sm"]) for plant in made}) == len(made)
    assert len(set(datapaths([*PLANTS]))) == len(PLANTS) + 2
