"""The queue on disk: order, answers by content, and what is left of it when its process dies."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpucheck.tools.serve.task_store import STARTS, SUSPECT, TaskStore
from gpucheck.tools.serve.tasks import Answer, Evaluation, State

PAIR = Evaluation("problem", "candidate")
RIGHT = Answer(verdict="PASS", compiled=True, correct=True, metadata={"replay": "gpucheck run"})


@pytest.fixture
def store(tmp_path: Path) -> TaskStore:
    return TaskStore(tmp_path, keep=100)


def pair(candidate: str) -> Evaluation:
    return replace(PAIR, candidate=candidate)


def test_tasks_are_taken_by_priority_then_in_the_order_they_came(store: TaskStore) -> None:
    for id, priority in (("low", 2), ("first", 1), ("second", 1), ("high", 0)):
        store.add(id, pair(id), priority)
    waiting = store.waiting(10)
    assert [task.id for task in waiting] == ["high", "first", "second", "low"]
    assert [store.position(task) for task in waiting] == [0, 1, 2, 3]


def test_an_answer_ends_all_that_wait_for_the_same_and_whoever_asks_later(store: TaskStore) -> None:
    first, second, other = (store.add(id, pair(c), 1) for id, c in (("a", "x"), ("b", "x"), ("c", "y")))
    assert store.start(first, 0)
    assert store.finish(first, RIGHT) == ["a", "b"]
    later = store.add("d", pair("x"), 1)
    for id in ("a", "b", "d"):
        task = store.task(id)
        assert task is not None and task.state is State.COMPLETED and task.answer is not None
        assert task.answer.correct and task.answer.metadata["replay"] == "gpucheck run"
    assert later.answer is not None and later.answer.metadata["cached"] is True
    assert [task.id for task in store.waiting(10)] == [other.id]
    assert store.add("e", pair("x"), 1, refresh=True).state is State.PENDING


@pytest.mark.parametrize("change", [{"seed": 7}, {"trials": 4}, {"timed": False}, {"seconds": 5.0}, {"problem": "p"}])
def test_what_an_answer_depends_on_is_part_of_the_content(change: dict[str, object]) -> None:
    assert replace(PAIR, **change).content != PAIR.content  # type: ignore[arg-type]
    assert replace(PAIR, preferred=3).content == PAIR.content


def test_an_answer_that_tells_of_the_server_alone_is_not_kept(store: TaskStore) -> None:
    first = store.add("a", PAIR, 1)
    store.add("b", PAIR, 1)
    store.start(first, 0)
    assert store.finish(first, Answer(status=500, detail="no room", lasting=False)) == ["a"]
    assert [task.id for task in store.waiting(10)] == ["b"]
    assert store.add("c", PAIR, 1).state is State.PENDING


def test_a_task_that_waits_or_runs_is_cancelled_and_its_late_answer_changes_nothing(store: TaskStore) -> None:
    waiting, running = store.add("a", pair("x"), 1), store.add("b", pair("y"), 1)
    store.start(running, 0)
    assert store.cancel("a") and store.cancel("b") and not store.cancel("a") and not store.cancel("nobody")
    store.finish(running, RIGHT)
    assert {store.task(task.id).state for task in (waiting, running)} == {State.CANCELLED}  # type: ignore[union-attr]


def test_a_killed_process_loses_no_task_and_no_answer(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from gpucheck.tools.serve.task_store import TaskStore
from gpucheck.tools.serve.tasks import Answer, Evaluation
store = TaskStore(Path({str(tmp_path)!r}), 100)
tasks = [store.add(id, Evaluation("problem", id), 1) for id in ("done", "running", "waiting")]
for task in tasks[:2]:
    store.start(task, 0)
store.finish(tasks[0], Answer(verdict="PASS", compiled=True, correct=True))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    store = TaskStore(tmp_path, 100)
    done = store.task("done")
    assert done is not None and done.state is State.COMPLETED and done.answer is not None and done.answer.correct
    assert store.recover() == 1
    assert [task.id for task in store.waiting(10)] == ["running", "waiting"]


def test_a_task_with_which_the_server_died_each_time_is_not_tried_for_ever(store: TaskStore) -> None:
    task = store.add("a", PAIR, 1)
    for _ in range(STARTS):
        assert store.start(task, 0)
        store.recover()
    ended = store.task("a")
    assert ended is not None and ended.state is State.FAILED and ended.answer is not None and not ended.answer.lasting


def test_a_task_with_which_the_server_died_often_waits_until_there_is_no_other(store: TaskStore) -> None:
    task = store.add("a", PAIR, 0)
    for _ in range(SUSPECT):
        assert store.start(task, 0)
        store.recover()
    store.add("b", pair("b"), 2)
    assert [each.id for each in store.waiting(9)] == ["b", "a"]


def test_a_task_that_was_handed_back_has_not_been_started(store: TaskStore) -> None:
    task = store.add("a", PAIR, 1)
    for _ in range(STARTS + 1):
        assert store.start(task, 0)
        store.hand_back("a")
    assert store.recover() == 0 and [each.id for each in store.waiting(10)] == ["a"]


def test_old_tasks_and_answers_go_and_what_waits_stays(tmp_path: Path) -> None:
    store = TaskStore(tmp_path, keep=3)
    store.add("waits", pair("never"), 2)
    for number in range(6):
        task = store.add(f"t{number}", pair(str(number)), 1)
        store.start(task, 0)
        store.finish(task, RIGHT)
    assert [store.task(f"t{number}") is not None for number in range(6)] == [False] * 3 + [True] * 3
    assert store.task("waits") is not None
    assert store.add("again", pair("0"), 1).state is State.PENDING
    assert store.add("known", pair("5"), 1).state is State.COMPLETED
