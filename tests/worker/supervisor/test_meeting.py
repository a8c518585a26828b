"""How supervisors begin a joint case: in the group that all their children are in, else all with fresh children."""

from __future__ import annotations

from typing import Any

import pytest

from gpucheck.worker.supervisor.meeting import Absent, Meeting


class Posted:
    """A board on which the other ranks have left what they say each time."""

    def __init__(self, *others: dict[str, Any]) -> None:
        self.ranks, self.said, self._others = 2, list[Any](), list(others)

    def post(self, name: str, content: Any) -> None:
        self.said.append((name, content))

    def came(self, name: str) -> dict[int, Any]:
        assert name == self.said[-1][0]
        return {0: self.said[-1][1], 1: self._others.pop(0)}


def saying(group: str, problem: str = "") -> dict[str, Any]:
    return {"group": group, "problem": problem}


@pytest.mark.parametrize(
    ("mine", "other", "expected"), [("", "", "7.1"), ("3.1", "3.1", "3.1"), ("3.1", "", None), ("", "3.1", None)]
)
def test_ranks_go_on_in_one_live_group_or_none_of_them_in_its_own(mine: str, other: str, expected: str | None) -> None:
    board: Any = Posted(saying(other), saying(""))
    meeting = Meeting(board, "7.1")
    assert meeting.arrive(mine, "") == expected
    if expected is None:
        assert meeting.arrive("", "") == "7.1", "with fresh children"
        assert len({name for name, _ in board.said}) == 2, "nobody takes the first answer for the second"


def test_a_rank_without_a_child_is_absent() -> None:
    board: Any = Posted(saying("", "no memory"))
    assert Meeting(board, "7.1").arrive("", "") == Absent({1: "no memory"})
