"""Ranks of a node that meet, wait, hand things over, rest and die; other ranks are processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpucheck.worker.supervisor.node_sync import Node
from tests.processes import wait_until

SOON = 50.0  # s; a fail-safe, which a busy machine does not reach


def _rank(folder: Path, number: int, ranks: int, work: Callable[[Node], None], ready: Any, stop: Any) -> None:
    node = Node(folder, number, ranks)
    ready.set()
    work(node)
    stop.wait(60)
    os._exit(0)


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts another rank in a process of its own, which works and then lives on."""
    context = multiprocessing.get_context("fork")
    processes = []

    def start(number: int, ranks: int, work: Callable[[Node], None] = lambda node: None) -> Any:
        ready, stop = context.Event(), context.Event()
        process = context.Process(target=_rank, args=(tmp_path, number, ranks, work, ready, stop))
        process.start()
        processes.append(process)
        assert ready.wait(SOON)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_a_rank_is_gone_when_its_process_is(tmp_path: Path, another: Callable[..., Any]) -> None:
    node = Node(tmp_path, 0, 3)
    process = another(1, 3)
    assert not node.gone(1) and not node.gone(0)
    assert not node.gone(2), "a rank that was never here may still come"
    process.kill()
    process.join()
    assert node.gone(1)


def test_ranks_meet(tmp_path: Path, another: Callable[..., Any]) -> None:
    node = Node(tmp_path, 0, 2)
    begin = time.monotonic()
    assert not node.barrier("early", 0.2) and time.monotonic() - begin < SOON
    another(1, 2, lambda other: (time.sleep(0.3), other.barrier("here", SOON)))  # type: ignore[arg-type]
    begin = time.monotonic()
    assert node.barrier("here", SOON) and time.monotonic() - begin < SOON


def test_nobody_waits_for_the_dead(tmp_path: Path, another: Callable[..., Any]) -> None:
    node = Node(tmp_path, 0, 2)
    process = another(1, 2)
    threading.Timer(0.2, process.kill).start()
    begin = time.monotonic()
    assert node.barrier("never", SOON) and time.monotonic() - begin < SOON
    assert node.collect("nothing", 1) is None


def test_what_is_published_is_collected_once(tmp_path: Path, another: Callable[..., Any]) -> None:
    node = Node(tmp_path, 1, 2)
    another(0, 2, lambda other: (time.sleep(0.2), other.publish("4", 1, {"a": [1, None]})))  # type: ignore[arg-type]
    assert node.collect("4", 0) == {"a": [1, None]}
    assert not list(tmp_path.glob("4.*"))


def test_a_sender_that_dies_after_publishing_has_been_heard(tmp_path: Path, another: Callable[..., Any]) -> None:
    node = Node(tmp_path, 1, 2)
    process = another(0, 2, lambda other: other.publish("4", 1, "said"))
    wait_until(lambda: list(tmp_path.glob("4.for1")))
    process.kill()
    process.join()
    assert node.collect("4", 0) == "said"


def test_alone_waits_for_the_others_to_rest(tmp_path: Path, another: Callable[..., Any]) -> None:
    node = Node(tmp_path, 0, 2)
    told = multiprocessing.get_context("fork").Event()
    another(1, 2, lambda other: (told.wait(), other.leave()))  # type: ignore[arg-type]
    with node.alone(0.1) as alone:
        assert not alone, "the other one is still at work"
    told.set()
    begin = time.monotonic()
    with node.alone(SOON) as alone:
        assert alone and time.monotonic() - begin < SOON


def test_two_that_want_to_be_alone_take_turns(tmp_path: Path) -> None:
    first, second = Node(tmp_path, 0, 2), Node(tmp_path, 1, 2)
    inside: list[int] = []
    most: list[int] = []

    def work(node: Node, number: int) -> None:
        with node.alone(SOON) as alone:
            assert alone
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.1)
            inside.remove(number)
        node.leave()

    threads = [threading.Thread(target=work, args=pair) for pair in ((first, 0), (second, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert most == [1, 1]


def test_the_first_to_ask_decides_for_all(tmp_path: Path) -> None:
    nodes = [Node(tmp_path, rank, 3) for rank in range(3)]
    assert [node.vote("round1", wish) for node, wish in zip(nodes, (True, False, False), strict=True)] == [True] * 3
    assert [node.vote("round2", wish) for node, wish in zip(nodes, (False, True, True), strict=True)] == [False] * 3


def test_ranks_that_ask_at_once_get_one_answer(tmp_path: Path) -> None:
    nodes = [Node(tmp_path, rank, 8) for rank in range(8)]
    for number in range(20):
        answers: list[bool] = []
        gate = threading.Barrier(8)

        def ask(node: Node, name: str = f"round{number}", gate: Any = gate, answers: list[bool] = answers) -> None:
            gate.wait()
            answers.append(node.vote(name, node.local_rank % 2 == 0))

        threads = [threading.Thread(target=ask, args=(node,)) for node in nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 8 and len(set(answers)) == 1
    assert not list(tmp_path.glob("*.wish*"))


def test_what_all_have_told_is_known(tmp_path: Path) -> None:
    first, second = Node(tmp_path, 0, 2), Node(tmp_path, 1, 2)
    first.post("3-abc")
    assert not second.all_posted("3-abc")
    second.post("3-abc")
    second.post("3-abc")
    assert first.all_posted("3-abc") and second.all_posted("3-abc") and not first.all_posted("3-abd")


def test_a_task_belongs_to_one_rank(tmp_path: Path) -> None:
    first, second = Node(tmp_path, 0, 2), Node(tmp_path, 1, 2)
    assert second.claim("a") and not first.claim("a") and not second.claim("a") and first.claim("b")
