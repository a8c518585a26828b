"""Steps that run at once: which, in what order, and what becomes of those that others left no room for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck import checks
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, Replay, Step
from gpucheck.model.record import Outcome, Record
from gpucheck.worker.compile_claims import Claims
from gpucheck.worker.protocol import Reply
from gpucheck.worker.supervisor import lane_queue, lanes
from gpucheck.worker.supervisor.attempt import Attempt
from tests.conftest import Synthetic


@pytest.fixture
def plan(synthetic: Synthetic) -> Plan:
    """Both kinds of data of twelve products, then two with one visible GPU."""
    spec = checks.load("matmul").spec
    cases = [spec.case({"m": 4, "n": 8 + n, "k": 32}, data, 0) for n in range(12) for data in ("exact", "normal")]
    steps = [Step(case) for case in cases] + [Step(case, Conditions("visible")) for case in cases[:2]]
    return replace(synthetic.plan(), steps=tuple(steps))


@pytest.fixture(autouse=True)
def no_mps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(lanes, "MPS", tmp_path / "control")
    monkeypatch.setattr(lanes, "available_memory", lambda: 1 << 40)


def test_processors_decide_how_many_run_at_once(plan: Plan) -> None:
    assert [lanes.count(plan, processors) for processors in (1, 2, 7, 8, 16, 64)] == [1, 1, 1, 2, 4, 4]


def test_memory_decides_how_many_run_at_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, at_once in ((4, 1), (13, 2), (30, 4)):
        monkeypatch.setattr(lanes, "available_memory", lambda free=free: free << 30)
        assert lanes.count(plan, 64) == at_once
    assert lanes.count(replace(plan, nproc=4), 64) == 1, "of all ranks of a node"


def test_experiments_run_on_all_processors_that_memory_can_serve(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = (4, 1), (8, 2), (16, 4), (64, 4)
    assert [lanes.experiments_at_once(plan, count, processors) for processors, count in shares] == [1, 8, 16, 16]
    for free, at_once in ((26, 8), (40, 13), (100, 16)):
        monkeypatch.setattr(lanes, "available_memory", lambda free=free: free << 30)
        assert lanes.experiments_at_once(plan, 4, 16) == at_once
    assert lanes.experiments_at_once(replace(plan, nproc=8), 4, 16) == 4, "of all ranks of a node"


@pytest.mark.parametrize("changes", [{"duration": 60.0}, {"bench": True}, {"debug": True}, {"isolate": "case"}])
def test_what_is_timed_repeated_or_looked_at_closely_has_the_gpu_for_itself(plan: Plan, changes: Any) -> None:
    assert lanes.count(replace(plan, **changes), 64) == 1
    assert lanes.count(replace(plan, replay=Replay(0, False)), 64) == 1


def test_processes_that_would_share_a_context_run_one_by_one(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes.MPS.touch()
    assert lanes.count(plan, 64) == 1
    lanes.MPS.unlink()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/somewhere")
    assert lanes.count(plan, 64) == 1


def test_one_process_takes_the_steps_in_the_given_order(plan: Plan) -> None:
    assert lanes.schedule(plan, [3, 1, 2], 1) == lanes.Schedule((), (3, 1, 2))


def test_every_step_runs_once_and_cases_with_equal_kernels_in_one_process(plan: Plan) -> None:
    schedule = lanes.schedule(plan, range(26), 4)
    assert sorted(schedule.order) == list(range(26)) and not schedule.alone
    assert len(schedule.beside) == 12 + 1 and (24, 25) in schedule.beside, "two are not worth a process each"
    assert {len(task) for task in schedule.beside} == {2}


STRESS = [{"late": True}, {"consumer": "prompt"}, {"stream": "side"}, {"concurrency": 2}, {"cache": "cold"}]
STRESS += [{"placement": "peer"}, {"placement": "threads"}, {"process_group": "together"}, {"synchronised": True}]


@pytest.mark.parametrize("conditions", STRESS, ids=str)
def test_what_puts_stress_on_launches_has_the_gpu_for_itself(plan: Plan, conditions: Any) -> None:
    steps = (replace(plan.steps[0], conditions=Conditions(**conditions)), *plan.steps[1:])
    assert lanes.schedule(replace(plan, steps=steps), range(26), 4).alone == (0,)


def test_a_graph_is_replayed_with_nothing_beside_it(plan: Plan) -> None:
    graph = replace(plan.steps[0], case=checks.load("batches").spec.case({"m": 64, "graph": True}, "normal", 0))
    assert lanes.schedule(replace(plan, steps=(graph, *plan.steps[1:])), range(26), 4).alone == (0,)


def test_what_a_machine_need_not_have_runs_beside_others(plan: Plan) -> None:
    steps = (replace(plan.steps[0], optional=True), *plan.steps[1:])
    assert not lanes.schedule(replace(plan, steps=steps), range(26), 4).alone


FAR = {"m": 4, "n": 8, "k": 32, "operands": "far"}
SMALL = {"hidden": 32, "intermediate": 32, "experts": 4, "top_k": 1, "vocabulary": 32}


@pytest.mark.parametrize(("check", "params", "data"), [("generation", SMALL, "normal"), ("matmul", FAR, "exact")])
def test_what_takes_long_or_needs_memory_is_begun_while_others_have_much_to_do(
    plan: Plan, check: str, params: Any, data: str
) -> None:
    """Also those few that need a process of their own."""
    last = replace(plan.steps[23], case=checks.load(check).spec.case(params, data, 0))
    order = lanes.schedule(replace(plan, steps=(*plan.steps[:23], last, *plan.steps[24:])), range(26), 4).order
    assert order.index(23) < 13 and order[:2] == [24, 25] and sorted(order) == list(range(26))


class TestQueue:
    """What is given first."""

    def queue(self, plan: Plan, folder: Path | None) -> lane_queue.Queue:
        compiled = [plan.steps[number].case for number in (2, 4, 6)]
        claims = Claims(folder) if folder else None
        return lane_queue.Queue([(0, 1), (2, 3), (4, 5), (6, 7)], plan, claims, compiled)

    def test_without_compilers_in_order(self, plan: Plan) -> None:
        queue = self.queue(plan, None)
        assert [queue.take() for _ in range(5)] == [(0, 1), (2, 3), (4, 5), (6, 7), None]

    def test_what_another_process_compiles_comes_last_and_what_it_has_compiled_first(
        self, plan: Plan, tmp_path: Path
    ) -> None:
        queue, others = self.queue(plan, tmp_path), Claims(tmp_path)
        assert others.take(0) and others.take(1)
        assert queue.take() == (0, 1), "nobody compiles for it ahead"
        others.finish(1)
        assert queue.take() == (4, 5)
        assert queue.take() == (6, 7) and not others.take(2), "it is this one's now"
        queue.done((6, 7))
        assert others.finished(2)
        assert queue.take() == (2, 3), "rather than wait for a process that may have died"

    def test_what_would_wait_for_its_inputs_comes_after_what_has_them(self, plan: Plan, tmp_path: Path) -> None:
        made, compiled = {4, 6}, [plan.steps[number].case for number in (2, 4, 6)]
        tasks = [(0, 1), (2, 3), (4, 5), (6, 7)]
        queue = lane_queue.Queue(tasks, plan, Claims(tmp_path), compiled, ready=made.__contains__)
        assert Claims(tmp_path).take(1), "another process compiles for (4, 5)"
        assert [queue.take() for _ in range(2)] == [(6, 7), (0, 1)]
        made |= {2}
        assert [queue.take() for _ in range(3)] == [(2, 3), (4, 5), None]
        queue = lane_queue.Queue(tasks, plan, None, (), ready=made.__contains__)
        assert [queue.take(starts=True), queue.take()] == [(0, 1), (2, 3)], "a process takes longer to start"

    def test_what_is_given_back_comes_next(self, plan: Plan) -> None:
        queue = self.queue(plan, None)
        queue.take()
        queue.give_back((0, 1), (1,))
        assert queue.drain() == (1, 2, 3, 4, 5, 6, 7) and queue.take() is None


class TestMemory:
    """Of the GPU, of which three cases need 48 GiB each, and what else runs beside them."""

    @pytest.fixture
    def steps(self, plan: Plan) -> Plan:
        far = [checks.load("matmul").spec.case({**FAR, "n": 8 + n}, "exact", 0) for n in range(3)]
        return replace(plan, steps=(*(replace(plan.steps[0], case=case) for case in far), *plan.steps[3:]))

    def queue(self, plan: Plan, free: int) -> lane_queue.Queue:
        """Free: GiB, 0 where nobody knows."""
        return lane_queue.Queue([(0,), (1,), (2,), (3,)], plan, None, (), lambda: free << 30)

    def test_as_many_run_at_once_as_there_is_room_for(self, steps: Plan) -> None:
        queue = self.queue(steps, 140)
        assert [queue.take() for _ in range(4)] == [(0,), (1,), (3,), None], "a quarter is for what runs beside"
        queue.done((0,))
        assert queue.take() == (2,)

    def test_a_task_that_is_given_back_holds_no_memory(self, steps: Plan) -> None:
        queue = self.queue(steps, 80)
        task = queue.take()
        assert task == (0,) and queue.take() == (3,)
        queue.give_back(task, task)
        assert queue.take() == (0,)

    @pytest.mark.parametrize("free", [0, 40])
    def test_without_room_beside_others_they_are_left_for_the_end(self, steps: Plan, free: int) -> None:
        queue = self.queue(steps, free)
        assert [queue.take(), queue.take()] == [(3,), None] and queue.drain() == (0, 1, 2)

    def test_they_run_at_the_same_time_in_processes_that_have_room(self, steps: Plan) -> None:
        together = threading.Barrier(2)

        def behave(runner: Any, number: int) -> Attempt:
            if number < 2:
                together.wait(60)
            return attempt(steps, number)

        judged: list[int] = []
        runners: Any = [Runner(), Runner()]
        left = lanes.run(self.queue(steps, 140), runners, behave, lambda attempt: judged.append(attempt.record.step))
        assert sorted((*judged, *left)) == [0, 1, 2, 3] and {0, 1} <= set(judged)


class Runner:
    """Stands for a child and its process."""

    def __init__(self, children: int = 1) -> None:
        self.child, self.started, self.stuck, self.retired = self, children, "", False

    def retire(self) -> None:
        self.retired = True


def run(plan: Plan, runners: list[Any], behave: Callable[[Any, int], Attempt]) -> tuple[list[int], tuple[int, ...]]:
    """The steps that came to a judge, in order, and those left."""
    judged: list[int] = []
    queue = lane_queue.Queue([(number,) for number in range(8)], plan, None, ())
    left = lanes.run(queue, runners, behave, lambda attempt: judged.append(attempt.record.step))
    return sorted(judged), left


def attempt(plan: Plan, number: int, status: str = "ran", message: str = "") -> Attempt:
    record = Record(number, "c", 0, Outcome.HARNESS)
    return Attempt(plan.steps[number], str(number), record, f"/nowhere/{number}", Reply(status, message))


def test_as_many_run_at_once_as_there_are_processes(plan: Plan) -> None:
    together = threading.Barrier(4)

    def behave(runner: Any, number: int) -> Attempt:
        together.wait(60)
        return attempt(plan, number)

    runners = [Runner() for _ in range(4)]
    assert run(plan, runners, behave) == (list(range(8)), ())
    assert [runner.retired for runner in runners] == [False, True, True, True]


@pytest.mark.parametrize(
    ("status", "message", "again"),
    [
        ("inapplicable", "needs 48 GiB free", True),
        ("error", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", True),
        ("error", "AssertionError: wrong", False),
        ("ran", "a note on memory: out of memory", False),
    ],
)
def test_what_lacked_memory_beside_others_is_run_again_by_itself(
    plan: Plan, status: str, message: str, again: bool
) -> None:
    behave: Any = lambda runner, number: attempt(plan, number, *((status, message) if number == 3 else ()))  # noqa: E731
    judged, left = run(plan, [Runner(), Runner()], behave)
    assert (3 in judged, 3 in left) == (not again, again)


def test_a_gpu_that_takes_no_second_process_gets_every_step_done_by_the_first(plan: Plan) -> None:
    def behave(runner: Any, number: int) -> Attempt:
        failed = replace(attempt(plan, number), reply=None)
        return attempt(plan, number) if runner.child.started else failed

    judged, left = run(plan, [Runner(), Runner(children=0)], behave)
    assert sorted((*judged, *left)) == list(range(8))


def test_nothing_more_begins_once_a_process_cannot_be_killed_or_an_attempt_raised(plan: Plan) -> None:
    child = SimpleNamespace(started=1, stuck="process 7 did not end", retire=lambda: None)
    stuck: Any = SimpleNamespace(child=child)
    judged, left = run(plan, [stuck], lambda runner, number: attempt(plan, number))
    assert (judged, left) == ([], tuple(range(8)))

    def full(runner: Any, number: int) -> Attempt:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        run(plan, [Runner(), Runner()], full)
