"""Inputs and references are made ahead: all that is needed, in the rank's order, by processes that leave nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck import checks
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, Step
from gpucheck.worker.supervisor import case_files, side_process
from gpucheck.worker.supervisor import making_ahead as module
from gpucheck.worker.supervisor.case_files import CaseFiles
from gpucheck.worker.supervisor.making_ahead import Makers, make_ahead
from tests.processes import alive, wait_until

KINDS = ("inputs", "digest", "reference")


@pytest.fixture
def plan(synthetic: Any) -> Plan:
    """Four small products."""
    spec = checks.load("matmul").spec
    cases = [spec.case({"m": 4, "n": columns, "k": 32}, "exact", 0) for columns in (8, 9, 10, 11)]
    return replace(synthetic.plan(device="cpu"), steps=tuple(Step(case, Conditions("cpu")) for case in cases))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of rank 5, the second of two on its node."""
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPUCHECK_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def made(folder: Path, number: int) -> list[str]:
    return [kind for kind in KINDS if (folder / f"{number}.{kind}").exists()]


def test_what_others_made_or_nobody_needs_is_not_made(
    plan: Plan, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CaseFiles.of(plan)
    steps = (plan.steps[0], replace(plan.steps[1], inapplicable="no GPU"), *plan.steps[2:])
    files.done("2", 5)
    wanted: list[str] = []
    monkeypatch.setattr(files, "make_ahead", lambda key, case: wanted.append(key))
    make_ahead(files, replace(plan, steps=steps), [3, 0, 1, 2], rank=5)
    assert wanted == ["3", "0"]


def test_a_step_whose_inputs_cannot_be_made_does_not_keep_the_others_from_theirs(
    plan: Plan, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, right = CaseFiles.of(plan), CaseFiles.make_ahead

    def planted(key: str, case: Any) -> None:
        if key == "1":
            raise ValueError("planted")
        right(files, key, case)

    monkeypatch.setattr(files, "make_ahead", planted)
    make_ahead(files, plan, range(4), rank=5)
    assert [made(scratch, number) for number in range(4)] == [list(KINDS), [], list(KINDS), list(KINDS)]


def test_nothing_is_made_while_the_files_fill_their_room(plan: Plan, scratch: Path) -> None:
    files = CaseFiles.of(plan)
    files.make_ahead("0", plan.steps[0].case)
    maker = threading.Thread(target=make_ahead, args=(files, plan, [1], 5, files.size() - 1))
    maker.start()
    maker.join(3 * case_files.POLL)
    assert maker.is_alive() and not made(scratch, 1)
    for rank in (4, 5):
        files.done("0", rank)
    maker.join()
    assert made(scratch, 1) == list(KINDS)


@pytest.mark.parametrize(
    ("free", "limit"), [(None, module.FILES_LIMIT), (4 << 30, 1 << 29), (1 << 40, module.FILES_LIMIT)]
)
def test_files_made_ahead_take_an_eighth_of_what_is_free_and_never_more_than_their_limit(
    monkeypatch: pytest.MonkeyPatch, free: int | None, limit: int
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: free)
    assert module.room() == limit


def test_no_more_ranks_of_a_node_make_ahead_than_it_has_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_processors", lambda: 2)
    assert [module.worth_having(local_rank) for local_rank in range(4)] == [True, True, False, False]


@pytest.fixture
def makers(plan: Plan, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Makers]:
    """That of a rank with one processor; it leaves a word when it makes malloc keep what is freed."""
    CaseFiles.of(plan)
    monkeypatch.setattr(side_process, "keep_freed_memory", lambda: (scratch / f"kept-{os.getpid()}").touch())
    made = Makers(plan, 1)  # one thread: torch has computed here already, and its threads do not survive a fork
    yield made
    made.close()


def test_a_process_of_its_own_makes_every_file(plan: Plan, scratch: Path, makers: Makers) -> None:
    (pid,) = makers._pids
    wait_until(lambda: all(made(scratch, number) == list(KINDS) for number in range(len(plan.steps))))
    assert (scratch / f"kept-{pid}").exists()
    assert CaseFiles.of(plan).reference("3", plan.steps[3].case)["y"].estimate.value.shape == (4, 11)


def test_closing_ends_what_is_at_work(
    plan: Plan, scratch: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "make_ahead", lambda *_: [(tmp_path / "at-work").touch(), threading.Event().wait()])
    makers = Makers(plan, 1)
    (pid,) = makers._pids
    wait_until((tmp_path / "at-work").exists)
    makers.close()
    assert not alive(pid)
    makers.close()


@pytest.mark.parametrize(("processors", "times", "count"), [(1, 1, 1), (2, 1, 1), (6, 1, 3), (64, 1, 4), (64, 9, 8)])
def test_half_of_the_processors_make_and_never_more_than_there_are_steps(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, processors: int, times: int, count: int
) -> None:
    told: list[int] = []
    monkeypatch.setattr(side_process, "fork", lambda plan, threads, work: told.append(threads) or 0)
    Makers(replace(plan, steps=plan.steps * times), processors)
    assert told == [max(1, processors // 2 // count)] * count, "the others are the child's, and of those who judge"


def test_half_of_the_processes_begin_with_what_takes_longest(
    plan: Plan, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever judges waits seconds for one reference while processors have nothing to do."""
    works: list[Any] = []
    orders: list[list[int]] = []
    monkeypatch.setattr(side_process, "fork", lambda plan, threads, work: works.append(work) or 0)
    monkeypatch.setattr(module, "make_ahead", lambda files, plan, order, *_: orders.append(list(order)))
    monkeypatch.setattr(module, "LARGEST", 1)
    monkeypatch.setattr(module.lanes, "count", lambda plan, processors: 1)
    spec = checks.load("matmul").spec
    large = Step(spec.case({"m": 64, "n": 5760, "k": 2880}, "exact", 0), Conditions("cpu"))
    Makers(replace(plan, steps=(*plan.steps[:3], large)), 8)
    for work in works:
        work()
    usual = module.rotated_order(replace(plan, steps=(*plan.steps[:3], large)), 1, 2)
    assert orders == [[3, *(number for number in usual if number != 3)]] * 2 + [usual] * 2
    works.clear()
    Makers(plan, 1)
    assert [work.keywords for work in works] == [{"largest_first": False}], "a single one keeps to the order"
