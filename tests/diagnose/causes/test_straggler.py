"""Ranks that are right but slow: who is warned of, who is not, and what the warning says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from statistics import median
from typing import Any

import pytest

from gpucheck.diagnose.causes.straggler import _median_without, warnings
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.finding import Finding
from gpucheck.model.record import Launch, Outcome, Verdict
from gpucheck.records.run_folder import Run
from tests.conftest import Synthetic


class Times:
    """A run whose cases all take 1 ms on all ranks, but for what is changed."""

    def __init__(self, synthetic: Synthetic, cases: int = 10, ranks: int = 4, seconds: float = 1e-3) -> None:
        plan = synthetic.plan(cases=cases, ranks=ranks)
        records = {
            (step, rank): synthetic.record(plan, step, rank, timings={"call": seconds})
            for step in range(cases)
            for rank in range(ranks)
        }
        self.run: Run = synthetic.run(plan, records)

    def scaled(self, rank: int, factor: float, steps: Any = None) -> Times:
        for step in range(len(self.run.plan.steps)) if steps is None else steps:
            seconds = self.run.records[(step, rank)].timings["call"] * factor
            self.changed(step, rank, timings={"call": seconds})
        return self

    def changed(self, step: int, rank: int, **changes: Any) -> None:
        self.run.records[(step, rank)] = replace(self.run.records[(step, rank)], **changes)

    def found(self) -> list[Finding]:
        return warnings(self.run)


def test_a_slow_rank_is_named_with_its_factor_and_leaves_the_verdict_alone(synthetic: Synthetic) -> None:
    conclusion = conclude(Times(synthetic, ranks=8).scaled(2, 1.6).run)
    (finding,) = conclusion.findings
    assert conclusion.verdict is Verdict.PASS and finding.warns and not finding.fails
    assert (finding.title, finding.cause) == ("straggler: 1.60 times as slow as its peers", "straggler")
    assert finding.ranks == [2] and len(finding.rows) == len(finding.cases) == 10 and finding.fix
    assert finding.evidence == [
        "10 of 10 cases at least 1.25 times as slow as the median of ranks 0, 1, 3-7; geometric mean 1.60"
    ]
    assert finding.cases[0].lines == ["1.6 ms a call, its peers 1 ms: 1.60 times as slow"]
    assert finding.cases[0].replay.endswith("--case matmul/0/exact")


def test_of_two_ranks_the_other_one_is_the_median(synthetic: Synthetic) -> None:
    (finding,) = Times(synthetic, ranks=2).scaled(1, 1.4).found()
    assert finding.ranks == [1] and "median of rank 0;" in finding.evidence[0]


def test_every_slow_rank_has_a_warning_of_its_own(synthetic: Synthetic) -> None:
    assert [finding.ranks for finding in Times(synthetic).scaled(0, 1.5).scaled(3, 2.0).found()] == [[0], [3]]


@pytest.mark.parametrize(
    "values", [[1.0, 2.0], [1.0, 2.0, 2.0], [1.0, 3.0, 4.0, 9.0], [5.0] * 5, [1.0, 2.0, 3.0, 7.0, 8.0]]
)
def test_the_median_of_the_others(values: list[float]) -> None:
    for number, value in enumerate(values):
        assert _median_without(values, value) == median(values[:number] + values[number + 1 :])


def test_hundreds_of_ranks_take_no_time(synthetic: Synthetic, slowness: Callable[[], float]) -> None:
    times = Times(synthetic, cases=20, ranks=512).scaled(77, 2.0)
    begin = time.process_time()
    assert [finding.ranks for finding in times.found()] == [[77]]
    assert time.process_time() - begin < 2 * slowness()


def test_the_worst_cases_come_first(synthetic: Synthetic) -> None:
    (finding,) = Times(synthetic).scaled(1, 1.5).scaled(1, 2.0, [7]).found()
    assert finding.cases[0].case == "matmul/7/exact" and "1.61" in finding.title


def test_the_factor_is_the_scenarios(synthetic: Synthetic) -> None:
    times = Times(synthetic).scaled(1, 1.4)
    assert len(times.found()) == 1
    times.run.plan = replace(times.run.plan, straggler=1.5)
    assert times.found() == []


def noisy(times: Times, spread: float) -> Times:
    random = Random(0)
    for step in range(len(times.run.plan.steps)):
        for rank in times.run.ranks:
            times.scaled(rank, random.uniform(1 - spread, 1 + spread), [step])
    return times


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_noise_is_no_straggler(synthetic: Synthetic, ranks: int) -> None:
    assert noisy(Times(synthetic, cases=100, ranks=ranks), 0.3).found() == []
    slow = noisy(Times(synthetic, cases=100, ranks=ranks).scaled(1, 1.5), 0.15).found()
    assert [finding.ranks for finding in slow] == [[1]]


@pytest.mark.parametrize("ranks", [2, 8])
def test_spikes_that_come_and_go_are_no_straggler(synthetic: Synthetic, ranks: int) -> None:
    times, random = Times(synthetic, cases=60, ranks=ranks, seconds=5e-6), Random(1)
    for step in range(60):
        times.scaled(random.randrange(ranks), 40.0, [step])
    assert times.found() == []


@pytest.mark.parametrize(("cases", "slow"), [(10, [4]), (10, [4, 5]), (10, [1, 2, 3, 4, 5]), (2, [0, 1])])
def test_few_slow_cases_are_no_straggler(synthetic: Synthetic, cases: int, slow: list[int]) -> None:
    assert Times(synthetic, cases=cases).scaled(1, 5.0, slow).found() == []


def test_microseconds_are_ignored(synthetic: Synthetic) -> None:
    assert Times(synthetic, seconds=3e-6).scaled(1, 2.5).found() == []
    assert len(Times(synthetic, seconds=3e-6).scaled(1, 10.0).found()) == 1
    mixed = Times(synthetic, cases=20, seconds=2e-6)
    for rank in range(4):
        mixed.scaled(rank, 500.0, range(5))
    (finding,) = mixed.scaled(2, 1.5).found()
    assert "5 of 5 cases" in finding.evidence[0], "what is too short to tell does not dilute what is long enough"


def test_one_rank_has_no_peers_and_other_gpus_are_none(synthetic: Synthetic) -> None:
    assert Times(synthetic, ranks=1).scaled(0, 9.0).found() == []
    times = Times(synthetic, ranks=3).scaled(2, 2.0)
    for step in range(10):
        times.changed(step, 2, device="NVIDIA H100")
    assert times.found() == []


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), "nan"])
def test_times_that_are_none_are_passed_over(synthetic: Synthetic, seconds: Any) -> None:
    times = Times(synthetic, ranks=2).scaled(1, 2.0)
    times.changed(0, 0, timings={"call": seconds})
    times.changed(1, 1, timings={"call": seconds})
    times.changed(2, 1, timings={})
    times.changed(3, 0, outcome=Outcome.MISMATCH)
    times.changed(4, 1, outcome=Outcome.ERROR)
    (finding,) = times.found()
    assert "5 of 5 cases" in finding.evidence[0]


def launch(name: str) -> Launch:
    return Launch("_matmul", 2, 0, ["cuda:0"], 0, name, "sm_90", 0, 4, [1])


def test_other_kernels_are_part_of_the_evidence(synthetic: Synthetic) -> None:
    times = Times(synthetic, ranks=3).scaled(1, 2.0)
    for rank, name in enumerate(("a", "b", "a")):
        times.changed(6, rank, launches=[launch(name)])
    (finding,) = times.found()
    assert finding.evidence[1] == "in 1 of them it launched other kernels than each of its peers"


def test_what_the_driver_said_is_part_of_the_evidence(synthetic: Synthetic) -> None:
    times = Times(synthetic).scaled(1, 2.0)
    for rank in range(4):
        slow = rank == 1
        times.run.gpus[rank] = {
            "sm_clock": 900 if slow else 1965 + rank,
            "sm_clock_max": 1980,
            "temperature": 88 if slow else 60,
            "throttle": ["hw_thermal_slowdown", "sw_power_cap"] if slow else [],
        }
    (finding,) = times.found()
    assert finding.evidence[1] == (
        "nvidia-smi during the run, of its GPU: SM clock 900 of 1980 MHz, 88 C, slowed by hw_thermal_slowdown, "
        "sw_power_cap; those of the other ranks: SM clock 1965 to 1968 of 1980 MHz, 60 C"
    )
    times.run.gpus = {1: {"sm_clock": None, "temperature": "?", "throttle": None}}
    assert len(times.found()[0].evidence) == 1


def test_a_warning_beside_a_failure_and_an_open_question(synthetic: Synthetic) -> None:
    failing = Times(synthetic).scaled(1, 2.0)
    failing.changed(0, 3, outcome=Outcome.MISMATCH, mismatches=[synthetic.mismatch()])
    conclusion = conclude(failing.run)
    assert conclusion.verdict is Verdict.FAIL and [f.warns for f in conclusion.findings] == [False, True]
    lost = Times(synthetic).scaled(1, 2.0)
    lost.changed(0, 3, outcome=Outcome.LOST)
    assert conclude(lost.run).verdict is Verdict.INCONCLUSIVE


def test_a_finding_cannot_fail_and_merely_warn() -> None:
    with pytest.raises(AssertionError, match="no influence on the verdict"):
        Finding("x", True, [], [], [], warns=True)
