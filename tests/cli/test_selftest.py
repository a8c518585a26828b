"""``gpucheck selftest`` around its runs: what it refuses, what it says, what it ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpucheck.launch.gpus import Found
from gpucheck.library.copies import LibraryCopy
from gpucheck.tools.selftest.assess import Assessment, Cell
from gpucheck.tools.selftest.effort import Effort
from gpucheck.tools.selftest.planted_runs import Done, SelfTest, Summary
from gpucheck.tools.selftest.schedule import FaultRun
from tests.cli.conftest import Command

EFFORT = Effort({"cases": 9, "repeat": 3}, {"cases": 4.0, "repeat": 2.0}, processes=2, starting=1.0, compiling=1.0)
Behaviour = Callable[[FaultRun], Assessment]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, here: Path) -> dict[str, Behaviour]:
    """Stands in for the runs; ``answers["each"]`` says what a run of faults on one rank finds."""
    behaviour: dict[str, Behaviour] = {}

    def fault_run(self: SelfTest, number: int, fault_run: FaultRun, began: Callable[[FaultRun], None]) -> Done:
        began(fault_run)
        found = behaviour.get(fault_run.column, lambda _: Assessment(clean=4))(fault_run)
        return Done(fault_run, 1.0, found, EFFORT)

    copy = LibraryCopy(here, here / "triton_kernels", "path", "f" * 64, "B", "v3.5")
    copy.package.mkdir()
    (copy.package / "matmul_ogs.py").write_text("")
    monkeypatch.setattr(SelfTest, "_run_one", fault_run)
    monkeypatch.setattr("gpucheck.library.library_option.resolve", lambda _: copy)
    monkeypatch.setattr("gpucheck.host.software.missing_packages", list)
    monkeypatch.setattr("gpucheck.launch.gpus.find", Found)
    return behaviour


def cells(**changes: object) -> Behaviour:
    """Every fault found as planted, but for the changes to the cells of rank 1."""

    def answer(fault_run: FaultRun) -> Assessment:
        made = [
            Cell(item.fault.name, str(item.ranks[0]), True) for item in fault_run.planted if item.fault.expected.title
        ]
        return Assessment([replace(cell, **changes) if cell.column == "1" else cell for cell in made], clean=4)

    return answer


def test_all_found_as_planted_passes(gpucheck: Command, answers: dict[str, Behaviour], here: Path) -> None:
    answers["each"] = cells()
    answer = gpucheck("selftest", "--faults", "bit-7,exit", "--json", "found.json")
    assert answer.code == 0, answer.out + answer.err
    lines = answer.out.splitlines()
    assert "PASS  self-test" in lines and "fault    0   1 all" in lines and "bit-7   ok  ok   ." in lines
    assert "detection     4 of 4 (100.0%) planted faults" in lines
    assert "false alarms  0 in 12 cases without a fault" in lines
    found = json.loads((here / "found.json").read_text())
    assert (found["passed"], found["planted"], found["attributed"], found["clean"]) == (True, 4, 4, 12)
    spent = "cases 4 s (9), repeat 2 s (3); 2 processes, 0.50 s each; compiling 1 s"
    assert "time  each fault on one rank, turn 2: 1 s = " + spent in lines
    assert [run["effort"]["processes"] for run in found["runs"]] == [2, 2, 2]


def test_a_run_that_is_ended_early_tells_where_its_time_went(
    gpucheck: Command, answers: dict[str, Behaviour], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(self: SelfTest, number: int, fault_run: FaultRun, began: object) -> None:
        self.cut_short[fault_run.name] = EFFORT

    monkeypatch.setattr(SelfTest, "_run_one", cut_short)
    answer = gpucheck("selftest", "--faults", "bit-7", "--json", "found.json")
    assert "INCOMPLETE  self-test" in answer.out and f"time  no fault: cut short, {EFFORT.words}" in answer.out
    assert json.loads((here / "found.json").read_text())["cut_short"]["no fault"]["attempts"] == EFFORT.attempts


@pytest.mark.parametrize(
    ("changes", "mark", "words"),
    [
        ({"detected": False}, "no", "wrong: bit-7 on rank 1: not detected"),
        ({"problems": ("called 'x'",)}, "??", "wrong: bit-7 on rank 1: called 'x'"),
    ],
)
def test_what_is_missed_or_misnamed_fails(
    gpucheck: Command, answers: dict[str, Behaviour], changes: dict[str, object], mark: str, words: str
) -> None:
    answers["each"] = cells(**changes)
    answer = gpucheck("selftest", "--faults", "bit-7")
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert "FAIL  self-test" in lines and f"bit-7   ok  {mark}   ." in lines and words in lines
    assert f"attribution   1 of 2 ({1 / 2:.1%})" in answer.out


def test_a_false_alarm_fails(gpucheck: Command, answers: dict[str, Behaviour]) -> None:
    answers["each"] = cells()
    answers["controls"] = lambda _: Assessment(clean=4, alarms=["rank 0: x: mismatch"])
    answer = gpucheck("selftest", "--faults", "bit-7")
    assert answer.code == 1 and "false alarm: no fault: rank 0: x: mismatch" in answer.out


def test_what_cannot_be_shown_here_is_named_with_the_reason(gpucheck: Command, answers: dict[str, Behaviour]) -> None:
    answers["each"] = cells()
    answer = gpucheck("selftest", "--faults", "bit-7,tf32,side-stream,no-launch")
    assert answer.code == 0
    assert "inapplicable: tf32, side-stream: needs GPUs" in answer.out
    assert "inapplicable: no-launch: matmul_ogs.py holds 0 times, not once: kernels." in answer.out


def test_nothing_that_can_be_shown_is_no_pass(gpucheck: Command, answers: dict[str, Behaviour]) -> None:
    assert gpucheck("selftest", "--faults", "tf32").code == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--faults", "bit-8"], "--faults: unknown fault 'bit-8'; known: "),
        (["--faults", ","], "--faults names no fault"),
        (["--device", "tpu"], "--device is 'tpu', expected auto, cuda or cpu"),
        (["--json", "missing/x.json"], "--json missing/x.json cannot be written"),
        (["--out", "full"], "--out "),
    ],
)
def test_bad_options(
    gpucheck: Command, answers: dict[str, Behaviour], here: Path, arguments: list[str], words: str
) -> None:
    (here / "full").mkdir()
    (here / "full" / "file").touch()
    answer = gpucheck("selftest", *arguments)
    assert answer.code == 2 and words in answer.message


def test_json_goes_to_stdout_alone(gpucheck: Command, answers: dict[str, Behaviour]) -> None:
    answers["each"] = cells()
    answer = gpucheck("selftest", "--faults", "bit-7", "--json", "-")
    assert json.loads(answer.out)["passed"] and "detection" in answer.err


def test_a_summary_without_runs_is_not_right() -> None:
    assert not Summary("cpu", 2, "B", []).right
