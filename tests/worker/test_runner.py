"""Attempts under special conditions: one process for all ranks, caches of their own, experiments."""

from __future__ import annotations

import threading
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from gpucheck.model.conditions import Conditions  # noqa: E402
from gpucheck.model.plan import Plan  # noqa: E402
from gpucheck.model.record import Outcome  # noqa: E402
from gpucheck.worker import runner as runner_module  # noqa: E402
from gpucheck.worker.node import Node  # noqa: E402
from gpucheck.worker.protocol import Reply, Request, Setup  # noqa: E402
from gpucheck.worker.runner import Runner  # noqa: E402
from gpucheck.worker.timing import BENCH  # noqa: E402
from gpucheck.worker.zygote import Child  # noqa: E402

if TYPE_CHECKING:
    from tests.conftest import Synthetic


class Children:
    """Children that answer each request with a reply a device, and remember what they were told."""

    def __init__(self, code: int = 0) -> None:
        self.setups: list[Setup] = []
        self.requests: list[Request] = []
        self.code = code  # they end with it instead of answering

    def spawn(self) -> Child:
        ours, theirs = Pipe()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return Child(0, ours)

    def bury(self, child: Child) -> int:
        child.connection.close()
        return -9

    reap = bury

    def _serve(self, connection: Any) -> None:
        try:
            self.setups.append(connection.recv())
            connection.send("")
            while True:
                self.requests.append(connection.recv())
                if self.code:
                    connection.close()
                    return
                connection.send([Reply("ran", device=f"gpu {n}") for n, _ in enumerate(self.requests[-1].outputs)])
        except (EOFError, OSError):
            return


@pytest.fixture
def plan(synthetic: Synthetic) -> Plan:
    made: Plan = synthetic.plan(cases=1, ranks=2, case_timeout=5.0)
    return made


def make(plan: Plan, folder: Path, children: Any, local_rank: int = 0) -> Runner:
    folder.mkdir(exist_ok=True)
    store: Any = SimpleNamespace(folder=folder, inputs=lambda key, case: folder / f"{key}.inputs")
    return Runner(plan, Node(folder, local_rank, 2), store, children, local_rank, "host", folder)


def step(plan: Plan, **conditions: Any) -> Any:
    return replace(plan.steps[0], conditions=Conditions(**conditions))


def test_cases_share_a_child_until_their_setups_differ(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    runner = make(plan, tmp_path / "s", children)
    for conditions in ({}, {"late": True}, {"placement": "visible"}, {"placement": "visible", "repeat": 3}):
        attempt = runner.run(0, step(plan, **conditions))
        assert attempt.reply and attempt.reply.device == "gpu 0"
    assert [setup.conditions.placement for setup in children.setups] == ["pinned", "visible"]
    assert [request.conditions.repeat for request in children.requests] == [1, 1, 1, 3]


def test_every_experiment_has_a_fresh_child(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    runner = make(plan, tmp_path / "s", children)
    runner.run(0, step(plan))
    attempt = runner.run(0, step(plan, repeat=5), "repeat")
    assert (attempt.record.experiment, attempt.key) == ("repeat", "0-again")
    runner.run(0, step(plan, alone=True), "alone")
    assert len(children.setups) == 3


def test_caches(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    both = [make(plan, tmp_path / "s", children, rank) for rank in (0, 1)]
    threads = [threading.Thread(target=runner.run, args=(0, step(plan, cache="cold"))) for runner in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    cold, again = {setup.cache for setup in children.setups}, len(children.setups)
    assert len(cold) == 1 and again == 2, "one folder for both ranks"
    both[0].run(0, step(plan, cache="fresh"))
    both[1].run(0, step(plan, cache="fresh"))
    both[0].run(0, step(plan, cache="cold", repeat=5), "repeat")
    caches = [setup.cache for setup in children.setups[2:]]
    assert len({*caches, *cold}) == 4, "a folder for each, an experiment shares none"
    assert all(Path(cache).is_dir() for cache in caches)


def test_ranks_wait_for_each_other_before_a_cold_cache(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[Any] = []
    runner = make(plan, tmp_path / "s", Children())
    monkeypatch.setattr(runner.node, "meet", lambda name, seconds: met.append((name, seconds)))
    runner.run(0, step(plan, cache="cold"))
    runner.run(0, step(plan, cache="cold"), "repeat")
    runner.run(0, step(plan))
    assert met == [("0", runner_module.MEETING_TIMEOUT)]


@pytest.mark.parametrize(("nnodes", "where"), [(1, "scratch"), (2, "run")])
def test_a_process_group_meets_where_all_its_ranks_can(plan: Plan, tmp_path: Path, nnodes: int, where: str) -> None:
    children = Children()
    runner = make(replace(plan, nnodes=nnodes), tmp_path / "scratch", children)
    runner.run_folder = tmp_path / "run"
    runner.run(0, step(plan, process_group="initialised"))
    assert children.setups[0].meeting == str(tmp_path / where / "process-group")


class TestWholeNode:
    """Placements in which the first rank's process holds all GPUs."""

    def test_each_rank_gets_the_reply_of_its_device(self, plan: Plan, tmp_path: Path) -> None:
        children = Children()
        host, guest = (make(plan, tmp_path / "s", children, rank) for rank in (0, 1))
        threads = step(plan, placement="threads")
        mine = host.run(0, threads)
        theirs = guest.run(0, threads)
        assert len(children.setups) == 1, "the guest starts no process"
        assert [attempt.reply and attempt.reply.device for attempt in (mine, theirs)] == ["gpu 0", "gpu 1"]
        assert [attempt.record.rank for attempt in (mine, theirs)] == [0, 1]
        (request,) = children.requests
        assert request.outputs == (mine.outputs, theirs.outputs)

    def test_a_dead_process_is_told_on_every_rank(self, plan: Plan, tmp_path: Path) -> None:
        children = Children(code=1)
        host, guest = (make(plan, tmp_path / "s", children, rank) for rank in (0, 1))
        attempts = [runner.run(0, step(plan, placement="sequential")) for runner in (host, guest)]
        assert [attempt.record.outcome for attempt in attempts] == [Outcome.CRASH] * 2
        assert "was killed by SIGKILL" in attempts[1].record.message and attempts[1].record.rank == 1

    def test_a_first_rank_that_is_gone(self, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        guest = make(plan, tmp_path / "s", Children(), 1)
        monkeypatch.setattr(guest.node, "gone", lambda rank: rank == 0)
        attempt = guest.run(0, step(plan, placement="threads"))
        assert attempt.record.outcome is Outcome.HARNESS
        assert "whose process holds all GPUs, has ended" in attempt.record.message

    def test_an_experiment_runs_in_a_process_of_the_rank_itself(self, plan: Plan, tmp_path: Path) -> None:
        children = Children()
        guest = make(plan, tmp_path / "s", children, 1)
        attempt = guest.run(0, step(plan, placement="threads", repeat=5), "repeat")
        assert attempt.reply and attempt.reply.device == "gpu 1"
        assert children.requests[0].outputs[1] == attempt.outputs
        assert len(set(children.requests[0].outputs)) == 2


def test_how_long_a_call_may_be_timed_is_part_of_the_request(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    runner = make(replace(plan, bench=True), tmp_path / "s", children)
    runner.run(0, step(plan))
    runner.run(0, step(plan, late=True))
    runner.run(0, step(plan), "repeat")
    assert [request.timed for request in children.requests] == [BENCH, None, None]
