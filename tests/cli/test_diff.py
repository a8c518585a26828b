from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpucheck.model.record import Outcome
from tests.cli.conftest import Command
from tests.conftest import Synthetic


@pytest.fixture
def stored(here: Path, synthetic: Synthetic) -> Path:
    """Run ``good`` in which all is right, ``bad`` with a failure, and ``part`` with a case less."""
    plan = synthetic.plan(cases=2, ranks=2)
    synthetic.write(here / "good", synthetic.run(plan))
    synthetic.write(here / "bad", synthetic.run(plan, {(1, 1): Outcome.MISMATCH}))
    synthetic.write(here / "part", synthetic.run(synthetic.plan(cases=1, ranks=2)))
    return here


@pytest.mark.parametrize(
    ("runs", "code", "words"),
    [
        (["good", "bad"], 1, "1 REGRESSION\n1 newly broken, "),
        (["bad", "good"], 0, "NO REGRESSION\n1 fixed, "),
        (["bad", "bad"], 0, "NO REGRESSION\n1 still broken, "),
        (["good", "part"], 1, "2 REGRESSIONS\n2 missing, "),
        (["good", "part", "--common"], 0, "NO REGRESSION\n"),
        (["part", "good"], 0, "NO REGRESSION\n"),
    ],
)
def test_the_exit_code_is_1_on_regressions(
    gpucheck: Command, stored: Path, runs: list[str], code: int, words: str
) -> None:
    answer = gpucheck("diff", *runs)
    assert answer.code == code and answer.out.startswith(words) and answer.err == ""


def test_json(gpucheck: Command, stored: Path) -> None:
    answer = gpucheck("diff", "good", "bad", "--json", "-")
    assert answer.code == 1 and json.loads(answer.out)["regressions"] == 1
    answer = gpucheck("diff", "good", "bad", "--json", "d.json")
    assert answer.code == 1 and answer.out.startswith("1 REGRESSION")
    assert json.loads((stored / "d.json").read_text())["counts"]["newly broken"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good", "gone"], "gone is no run folder"),
        (["good", "bad", "--json", "gone/d.json"], "there is no folder"),
    ],
)
def test_what_is_no_run(gpucheck: Command, stored: Path, arguments: list[str], words: str) -> None:
    answer = gpucheck("diff", *arguments)
    assert answer.code == 2 and words in answer.message and answer.out == ""
