"""The journal of collective calls: what it says of a process that is gone."""

from __future__ import annotations

from pathlib import Path

from gpucheck.worker.collective_journal import CollectiveCall, CollectiveJournal, read


def test_it_tells_which_calls_were_left(tmp_path: Path) -> None:
    journal = CollectiveJournal(tmp_path / "calls")
    journal.leave(journal.enter("barrier", "barrier", (0, 1), "all"))
    pending = journal.enter("all_reduce", "all_reduce x4", (0, 1), "all")
    journal.returned(pending)
    inside = journal.enter("send", "send x1", (0, 1), "all 0>1")
    calls = read(tmp_path / "calls")
    assert [(call.operation, call.number, call.inside) for call in calls] == [
        ("barrier", 1, False),
        ("all_reduce", 2, False),
        ("send", 1, True),
    ]
    journal.leave(inside)
    journal.waits(pending)
    assert [call.inside for call in read(tmp_path / "calls")] == [False, True, False]


def test_a_case_begins_with_nothing(tmp_path: Path) -> None:
    journal = CollectiveJournal(tmp_path / "calls")
    journal.enter("barrier", "barrier", (0, 1), "all")
    journal.begin()
    assert read(tmp_path / "calls") == []
    journal.enter("barrier", "barrier", (0, 1), "all")
    assert read(tmp_path / "calls") == [CollectiveCall("barrier", "barrier", (0, 1), "all", 1)]


def test_a_line_that_was_cut_costs_what_comes_behind_it_only(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    journal = CollectiveJournal(path)
    journal.enter("barrier", "barrier", (0, 1), "all")
    with open(path, "a") as file:
        file.write('["leave", ')
    assert [call.inside for call in read(path)] == [True]
    assert read(tmp_path / "none") == []
