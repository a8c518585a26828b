"""The journal of collective calls: what it says of a process that is gone."""

from __future__ import annotations

from pathlib import Path

from gpucheck.worker.collective_journal import CollectiveCall, CollectiveJournal, clear, read


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


def test_a_child_that_never_begins_a_case_is_not_told_by_the_calls_of_the_one_before(tmp_path: Path) -> None:
    """One that a signal had stopped between two cases was said to call something else than all others."""
    path = tmp_path / "journal"
    clear(path)
    journal = CollectiveJournal(path)
    journal.leave(journal.enter("send", "send bf16 x100", (0, 1), "pair"))
    clear(path)
    assert read(path) == []
    journal.begin()
    journal.enter("send", "send bf16 x7", (0, 1), "pair")
    assert [(call.signature, call.number) for call in read(path)] == [("send bf16 x7", 1)]
