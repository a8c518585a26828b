"""Autotuned kernels on the CPU: each configuration runs once on the tensors of the first call, as on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.conftest import Finished, Lab

CHECK = Path(__file__).parents[1] / "data" / "checks" / "autotuned.py"


@pytest.fixture(scope="module")
def run(lab: Lab) -> Finished:
    finished: Finished = lab.forked("--check-file", str(CHECK), "--experiments", "60", scenario=None)
    return finished


def test_what_the_chosen_configuration_leaves_out_is_not_written_and_no_race(run: Finished) -> None:
    assert run.code == 1
    assert run.finding("autotuned/part")["title"] == "autotuned on live tensors: output not written"
    lines = run.lines("autotuned/part")
    assert "out: values 0-63 of 256" in lines and "64 wrong elements still hold the poison" in lines
    assert "add_rest is autotuned: 2 configurations were tried on the tensors of the first call" in lines


def test_a_kernel_in_place_is_wrong_in_the_call_that_is_tuned(run: Finished) -> None:
    assert run.finding("autotuned/in_place")["title"] == "autotuned on live tensors: wrong in the first call alone"
    assert "gave other bits than the 2 after it" in run.lines("autotuned/in_place")


def test_configurations_that_are_alike_are_right(run: Finished) -> None:
    assert run.outcomes("autotuned/alike") == ["pass", "pass"]
