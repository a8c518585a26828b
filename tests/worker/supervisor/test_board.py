"""What supervisors tell each other through the store: nobody waits for a rank that is gone, or for a store that is."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

distributed = pytest.importorskip("torch.distributed")

from gpucheck.worker.supervisor import board as module  # noqa: E402
from gpucheck.worker.supervisor.blame import RAN, WAITED, RankState  # noqa: E402
from gpucheck.worker.supervisor.board import Board, NoStore  # noqa: E402
from gpucheck.worker.supervisor.meeting import Absent, Meeting  # noqa: E402
from gpucheck.worker.supervisor.node_sync import Node  # noqa: E402


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store as torchrun's agent holds it."""
    held = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(held.port))
    monkeypatch.setenv("RANK", "1")
    return held


def boards(folder: Path, ranks: int, local_ranks: int | None = None) -> list[Board]:
    """The boards of the first ranks, all of them on one node unless so few are."""
    local = local_ranks or ranks
    (folder / "records").mkdir(exist_ok=True)
    return [Board(Node(folder, rank, local), rank, ranks, folder / "records") for rank in range(local)]


def test_all_ranks_see_what_each_has_left(store: Any, tmp_path: Path) -> None:
    first, second = boards(tmp_path, 2)
    first.post("word", {"a": 1})
    assert second.seen("word", 0) == {"a": 1} and second.seen("word", 1) is None
    threading.Timer(0.05, second.post, ("word", {"a": 2})).start()
    assert first.came("word") == {0: {"a": 1}, 1: {"a": 2}}
    assert first.count("votes", 1) == 1 and second.count("votes", 1) == 2 == first.count("votes")


def test_a_supervisor_that_ended_is_not_waited_for(store: Any, tmp_path: Path) -> None:
    first, second = boards(tmp_path, 2)
    second.node._presence.close()  # as the kernel does it when a process ends
    first.post("word", 1)
    assert first.came("word") == {0: 1} and first.gone() == {1}
    assert first.gather("other", 1) is None
    assert Meeting(first, "case").arrive("", "") == Absent({1: "its supervisor has ended"})


def test_a_supervisor_that_died_before_it_came_is_not_waited_for(store: Any, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    board = Board(Node(tmp_path, 0, 2), 0, 2, tmp_path / "records")
    assert board.gone() == set()
    lines = [json.dumps({"event": "start"}), json.dumps({"event": "death", "how": "was killed"}, separators=(",", ":"))]
    (tmp_path / "records" / "rank-00001.jsonl").write_text("\n".join(lines) + "\n")
    board._looked = 0.0
    board.post("word", 1)
    assert board.came("word") == {0: 1} and board.gone() == {1}


def test_a_rank_of_another_node_lives_as_long_as_it_says_so(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (board,) = boards(tmp_path, 2, local_ranks=1)
    now = [board._began]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))

    def gone_after(seconds: float) -> set[int]:
        now[0] += seconds
        return set(board.gone())

    store_of_all = distributed.PrefixStore("gpucheck/board", store)
    assert gone_after(module.COMING - 1) == set(), "it may still start"
    store_of_all.set("alive/1", "1")
    assert gone_after(1) == set() == gone_after(module.SILENCE - 1)
    store_of_all.set("alive/1", "2")
    assert gone_after(2) == set()
    assert gone_after(module.SILENCE + 1) == {1}


def test_a_store_that_does_not_answer_is_asked_once(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (board, _) = boards(tmp_path, 2)
    monkeypatch.setattr(module, "ANSWER", 0.2)
    asked: list[int] = []
    silent = type("Silent", (), {"set": lambda *_: (asked.append(1), time.sleep(30))})
    monkeypatch.setattr(board, "_store", silent())
    for _ in range(3):
        with pytest.raises(NoStore, match=f"127.0.0.1:{os.environ['MASTER_PORT']} does not answer"):
            board.post("word", 1)
    assert asked == [1]


def test_ranks_go_on_in_a_group_that_all_are_in_and_else_make_a_new_one(store: Any, tmp_path: Path) -> None:
    def arrive(*groups: str, again: bool = False) -> set[Any]:
        if not again:
            arrive.turn += 1  # type: ignore[attr-defined]
            meetings[:] = [Meeting(board, f"case {arrive.turn}") for board in held]  # type: ignore[attr-defined]
        got: list[Any] = []
        threads = [
            threading.Thread(target=lambda m=m, g=g: got.append(m.arrive(g, "")))  # type: ignore[misc]
            for m, g in zip(meetings, groups, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return set(got)

    arrive.turn = 0  # type: ignore[attr-defined]
    held, meetings = boards(tmp_path, 3), list[Meeting]()
    assert arrive("", "", "") == {"case 1"}
    assert arrive("case 1", "case 1", "case 1") == {"case 1"}
    for mixed in (("case 1", "", "case 1"), ("case 1", "case 3", "case 1")):
        assert arrive(*mixed) == {None}, "a group that lost a rank is left by ending its processes"
        assert arrive("", "", "", again=True) == {f"case {arrive.turn}"}  # type: ignore[attr-defined]


def test_a_rank_without_a_process_keeps_all_from_beginning(store: Any, tmp_path: Path) -> None:
    first, second = (Meeting(board, "case") for board in boards(tmp_path, 2))
    other = threading.Timer(0.05, second.arrive, ("", "no GPU"))
    other.start()
    assert first.arrive("", "") == Absent({1: "no GPU"})
    other.join()  # it asks the store, which ends with the test


def test_each_rank_gets_the_states_of_all(store: Any, tmp_path: Path) -> None:
    first, second = (Meeting(board, "case") for board in boards(tmp_path, 2))
    ended: dict[int, RankState] = {}
    other = threading.Thread(target=lambda: ended.update(second.end(RankState(1, WAITED, "hung"), 5.0)))
    other.start()
    assert first.end(RankState(0, RAN), 5.0) == {0: RankState(0, RAN), 1: RankState(1, WAITED, "hung")}
    other.join()
    assert ended[0] == RankState(0, RAN) and first._failed_elsewhere()
