"""Which joint cases are tried again: all ranks choose the same ones of what all have told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.experiment_list import REPEATS
from gpucheck.diagnose.strategy import ALONE
from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.plan import ExpectedFailure, Plan
from gpucheck.model.record import Outcome, Record
from gpucheck.worker.supervisor import judging
from gpucheck.worker.supervisor.joint_experiments import MOST_STEPS, JointExperiments, chosen
from tests.conftest import Synthetic, make_mismatch

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


class FakeRank:
    """The runner, child, board and writer of rank 0, which tell what each process ran."""

    rank, stuck, files = 0, "", None

    def __init__(self, bits: Callable[[int, int], str]) -> None:
        """``bits``: of the outputs of a step at its so-many-th time, from 0; "" where these are right."""
        self.processes: list[list[tuple[int, str]]] = [[]]
        self._bits, self._times = bits, Counter[tuple[int, str]]()

    child = together = property(lambda self: self)

    def board(self) -> FakeRank:
        return self

    def gather(self, name: str, mine: Any) -> dict[int, Any]:
        """The other rank was right."""
        return {
            0: mine,
            1: {**mine, "failed": False, "bits": ""} if "bits" in mine else {} if name == "failed" else mine,
        }

    def retire(self) -> None:
        if self.processes[-1]:
            self.processes.append([])

    def run(self, number: int, step: Any, name: str) -> Any:
        bits = self._bits(number, self._times[(number, name)]) if name == "repeat" else ""
        self._times[(number, name)] += 1
        self.processes[-1].append((number, name))
        wrong = {"outcome": Outcome.MISMATCH, "mismatches": [make_mismatch()], "digests": {"y": bits}}
        return Record(number, "c", 0, **(wrong if bits else {"outcome": Outcome.PASS}))

    def begin(self, *_: Any) -> None:
        """Nothing is written."""

    result = begin


def processes(synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch, bits: Callable[[int, int], str]) -> Any:
    monkeypatch.setattr(judging, "finished", lambda files, attempt: attempt)
    made = plan(synthetic, experiments=30.0)
    failed = [synthetic.record(made, step, 0, Outcome.MISMATCH) for step in range(3)]
    rank: Any = FakeRank(bits)
    JointExperiments(made, rank, rank, failed).work()
    return [process for process in rank.processes if process]


def test_cases_that_fail_alike_every_time_share_processes_and_each_is_the_first_in_one(
    synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = processes(synthetic, monkeypatch, lambda step, time: f"wrong {step}")
    repeats = [[step for step, _ in process] for process in found if process[0][1] == "repeat"]
    assert repeats[: 3 * ALONE] == [[step] for _ in range(ALONE) for step in range(3)], "first each by itself"
    assert repeats[3 * ALONE :] == [[2, 0, 1], [0, 1, 2], [1, 2, 0]]
    assert all(len(process) == 1 for process in found if process[0][1] != "repeat")
    assert [process[0][1] for process in found].count("in step") >= 3


def test_a_case_that_comes_and_goes_has_all_its_processes_for_itself(
    synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So has one with other bits each time, and one that came out otherwise beside others does not share again."""
    once = {0: lambda time: "" if time == 1 else "a", 1: str, 2: lambda time: "" if time == ALONE else "c"}
    found = processes(synthetic, monkeypatch, lambda step, time: once[step](time + 1 if step == 1 else time))
    repeats = Counter(tuple(step for step, _ in process) for process in found if process[0][1] == "repeat")
    assert repeats == {(0,): REPEATS, (1,): REPEATS, (2,): REPEATS}
