"""Which faults share a run, and on which ranks each is planted there."""

from __future__ import annotations

import pytest

from gpucheck.model.errors import ExitCode
from gpucheck.tools.selftest.catalogue import FAULTS, choose
from gpucheck.tools.selftest.catalogue.controls import OTHER_CONFIG
from gpucheck.tools.selftest.fault import Hook, Session, Target
from gpucheck.tools.selftest.schedule import visits


@pytest.mark.parametrize(("device", "ranks"), [("cpu", 1), ("cpu", 2), ("cuda", 2), ("cuda", 8)])
def test_every_fault_that_shows_is_planted_on_each_of_its_targets(device: str, ranks: int) -> None:
    able = [fault for fault in FAULTS if not fault.reason_against(device, ranks)]
    made = visits(able, device, ranks)
    for fault in able:
        places = [
            (visit.column, item.ranks) for visit in made for item in visit.planted if item.fault.name == fault.name
        ]
        expected = []
        if Target.EACH in fault.targets:
            expected += [("each", (rank,)) for rank in range(ranks)]
        if Target.ALL in fault.targets and (ranks > 1 or Target.EACH not in fault.targets):
            expected.append(("all", tuple(range(ranks))))
        if Target.OTHERS in fault.targets:
            expected.append(("all", tuple(range(1, ranks))))
        assert sorted(places) == sorted(expected), fault.name


def test_one_run_has_nothing_planted_and_comes_first() -> None:
    first, *others = visits(choose(["bit-7"]), "cpu", 2)
    assert not first.planted and first.exit_code is ExitCode.PASS and first.column == "controls"
    assert all(visit.planted and visit.exit_code is ExitCode.FAIL for visit in others)


def test_seeds_differ_between_runs() -> None:
    made = visits(FAULTS, "cuda", 2)
    assert len({visit.seed for visit in made}) == len(made) == len({visit.name for visit in made})


def test_a_lost_rank_has_a_run_of_its_own_without_gpus() -> None:
    made = visits(choose(["never-starts"]), "cuda", 2)[1:]
    assert [(visit.device, [item.ranks for item in visit.planted]) for visit in made] == [
        ("cpu", [(0,)]),
        ("cpu", [(1,)]),
    ]
    assert {visit.exit_code for visit in made} == {ExitCode.INCONCLUSIVE}


def test_a_change_that_is_no_fault_goes_beside_those_of_each_rank() -> None:
    turns = [visit for visit in visits(choose(["bit-7", "exit"]), "cpu", 2) if visit.column == "each"]
    places = [item.ranks for visit in turns for item in visit.planted if item.fault is OTHER_CONFIG]
    assert sorted(places) == [(0,), (1,)]


def test_each_rank_hangs_in_a_case_of_its_own() -> None:
    faults = choose(["endless-loop", "endless-kernel"])
    _, visit = visits(faults, "cuda", 8)
    assert len({item.fault.columns for item in visit.planted}) == len(visit.planted) == 16
    assert not {item.fault.columns for item in visit.planted} & {
        fault.columns for fault in FAULTS if fault not in faults
    }
    assert visit.case_timeout < 30


def test_ranks_that_race_compile_the_same_kernels() -> None:
    _, visit = visits(choose(["compile-race"]), "cuda", 2)
    assert [item.ranks for item in visit.planted] == [(0,), (1,)] and visit.experiments > 0
    assert all(isinstance(item.fault.plant, Hook) and item.fault.spread for item in visit.planted)


def test_time_for_experiments_goes_where_causes_take_it() -> None:
    by_name = {visit.name: visit for visit in visits(FAULTS, "cuda", 2)}
    assert by_name["each fault on one rank, turn 1"].experiments > 0
    assert by_name["damage in the kernel cache"].experiments > 0
    assert by_name["each fault on all ranks"].experiments > 0
    assert all(visit.experiments == 0 for visit in by_name.values() if visit.session is Session.LOST)
