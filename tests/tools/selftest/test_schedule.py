"""Which faults share a run, and on which ranks each is planted there."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.model.errors import ExitCode
from gpucheck.tools.selftest.catalogue import FAULTS, choose
from gpucheck.tools.selftest.catalogue.controls import OTHER_CONFIG
from gpucheck.tools.selftest.fault import Edit, Hook, Session, Target
from gpucheck.tools.selftest.planted_runs import SelfTest
from gpucheck.tools.selftest.schedule import MOST_PER_RANK, fault_runs


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("device", "ranks"), [("cpu", 1), ("cpu", 2), ("cuda", 1), ("cuda", 2), ("cuda", 8)])
def test_every_fault_that_shows_is_planted_on_each_of_its_targets(device: str, ranks: int, split: bool) -> None:
    able = [fault for fault in FAULTS if not fault.reason_against(device, ranks)]
    made = fault_runs(able, device, ranks, split=split)
    assert len({run.name for run in made}) == len(made)
    for fault in able:
        places = [(run.column, item.ranks) for run in made for item in run.planted if item.fault.name == fault.name]
        expected = []
        if Target.ONE in fault.targets:
            assert len(places) == 1 and places[0][0] == "each" and len(places[0][1]) == 1
            continue
        if Target.EACH in fault.targets:
            expected += [("each", (rank,)) for rank in range(ranks)]
        if Target.ALL in fault.targets and (ranks > 1 or Target.EACH not in fault.targets):
            expected.append(("all", tuple(range(ranks))))
        if Target.OTHERS in fault.targets:
            expected.append(("all", tuple(range(1, ranks))))
        assert sorted(places) == sorted(expected), fault.name


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_have_about_as_much_to_do_in_each_turn(ranks: int) -> None:
    longest = max(fault.effort for fault in FAULTS)
    for turn in (run for run in fault_runs(FAULTS, "cuda", ranks) if run.name.startswith("each fault on one rank")):
        load = [sum(item.fault.effort for item in turn.planted if rank in item.ranks) for rank in range(ranks)]
        assert max(load) - min(load) <= 1 < longest < max(load), load


def test_one_run_has_nothing_planted_and_comes_first() -> None:
    first, *others = fault_runs(choose(["bit-7"]), "cpu", 2)
    assert not first.planted and first.exit_code is ExitCode.PASS and first.column == "controls"
    assert all(run.planted and run.exit_code is ExitCode.FAIL for run in others)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_runs_that_are_made_at_once_hold_few_faults_and_share_kernels(ranks: int) -> None:
    made = [run for run in fault_runs(FAULTS, "cuda", ranks, split=True) if run.session is Session.SHARED]
    for run in made[1:]:
        faults = [item.fault for item in run.planted]
        places = [rank for item in run.planted for rank in item.ranks]
        assert max(places.count(rank) for rank in range(ranks)) <= MOST_PER_RANK
        assert len({isinstance(fault.plant, Edit) for fault in faults}) == 1, "source is changed in all or in none"
        usual = [fault.name for fault in faults if "placement" not in fault.case]
        assert "spoiled-by-bias" not in usual[1:], "its call with bias comes before others"


def test_faults_that_take_many_processes_to_be_told_share_them_and_nothing_else_waits_for_those() -> None:
    parts = [run for run in fault_runs(FAULTS, "cuda", 2, split=True) if run.name.startswith("each fault on all")]
    hooks = [run for run in parts if not isinstance(run.planted[0].fault.plant, Edit)]
    proven = [{item.fault.proven_often for item in run.planted} for run in hooks]
    assert sorted(proven, key=len) == proven and proven.count({True}) == 1 and proven.count({False}) == 2


def test_processes_have_the_usual_queues_of_the_gpu_where_streams_are_what_a_fault_is_about() -> None:
    made = fault_runs(FAULTS, "cuda", 2, split=True)
    usual = {item.fault.name for run in made if not run.one_queue for item in run.planted}
    few = {item.fault.name for run in made if run.one_queue for item in run.planted}
    assert {"side-stream", "unwaited-stream", "idle-for-clocks", "endless-kernel"} <= usual and "tf32" in few
    assert not {"side-stream", "unwaited-stream", "idle-for-clocks", "endless-kernel"} & few


def test_runs_that_last_longest_are_begun_first() -> None:
    made = sorted(fault_runs(FAULTS, "cuda", 2, split=True), key=lambda run: run.size, reverse=True)
    names = [run.name.partition(", ")[0] for run in made]
    assert {*names[:7]} == {"each fault on all ranks", "candidates that cheat"}
    assert set(names[7:15]) == {"each fault on one rank"}


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_a_fault_has_the_same_data_whether_its_run_is_split_or_not(ranks: int) -> None:
    whole, parts = (
        {
            (item.fault.name, item.ranks): run.seed
            for run in made
            if run.session is Session.SHARED
            for item in run.planted
        }
        for made in (fault_runs(FAULTS, "cuda", ranks), fault_runs(FAULTS, "cuda", ranks, split=True))
    )
    for turn in range(ranks):
        assert {fault for (fault, _), seed in whole.items() if seed == 1 + turn} == {
            fault for (fault, _), seed in parts.items() if seed == 1 + turn
        }


def test_seeds_differ_between_runs() -> None:
    made = fault_runs(FAULTS, "cuda", 2)
    assert len({run.seed for run in made}) == len(made) == len({run.name for run in made})


def test_a_lost_rank_has_a_run_of_its_own_without_gpus() -> None:
    made = fault_runs(choose(["never-starts"]), "cuda", 2)[1:]
    assert [(run.device, [item.ranks for item in run.planted]) for run in made] == [
        ("cpu", [(0,)]),
        ("cpu", [(1,)]),
    ]
    assert {run.exit_code for run in made} == {ExitCode.INCONCLUSIVE}


def test_a_change_that_is_no_fault_goes_beside_those_of_each_rank() -> None:
    turns = [run for run in fault_runs(choose(["bit-7", "exit"]), "cpu", 2) if run.column == "each"]
    places = [item.ranks for run in turns for item in run.planted if item.fault is OTHER_CONFIG]
    assert sorted(places) == [(0,), (1,)]


def test_each_rank_hangs_in_a_case_of_its_own() -> None:
    faults = choose(["endless-loop", "endless-kernel"])
    _, run = fault_runs(faults, "cuda", 8)
    assert len({item.fault.columns for item in run.planted}) == len(run.planted) == 16
    assert not {item.fault.columns for item in run.planted} & {fault.columns for fault in FAULTS if fault not in faults}
    assert run.case_timeout < 30


def test_ranks_that_race_compile_the_same_kernels() -> None:
    _, run = fault_runs(choose(["compile-race"]), "cuda", 2)
    assert [item.ranks for item in run.planted] == [(0,), (1,)] and run.experiments > 0
    assert all(isinstance(item.fault.plant, Hook) and item.fault.spread for item in run.planted)


def test_time_for_experiments_goes_where_causes_take_it() -> None:
    by_name = {run.name: run for run in fault_runs(FAULTS, "cuda", 2)}
    assert by_name["each fault on one rank, turn 1"].experiments > 0
    assert by_name["damage in the kernel cache"].experiments > 0
    assert by_name["each fault on all ranks"].experiments > 0
    assert all(run.experiments == 0 for run in by_name.values() if run.session is Session.LOST)


def test_a_run_that_loses_a_rank_goes_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met = threading.Barrier(2)

    def run_one(*_: Any) -> None:
        met.wait(600)

    monkeypatch.setattr(SelfTest, "_run_one", run_one)
    selftest = SelfTest([], tmp_path, "cpu", 2, tmp_path)
    runs: Any = [
        SimpleNamespace(session=session, size=1, name=session.name) for session in (Session.LOST, Session.SHARED)
    ]
    selftest.fault_runs, selftest.at_once = runs, 1
    summary: Any = SimpleNamespace(inapplicable={}, done=[])
    selftest.run(summary, lambda run: None, lambda done: None)
