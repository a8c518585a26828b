"""What is printed at the end of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gpucheck.tools.bisect.engine import hunt
from gpucheck.tools.bisect.repeats import Rate, estimate
from gpucheck.tools.bisect.saved_search import Find
from gpucheck.tools.bisect.search_text import rate_words, report
from tests.tools.bisect.conftest import CASE

if TYPE_CHECKING:
    from tests.tools.bisect.conftest import World


def told(world: World, letters: str, find: Find = Find.BAD, **changes: object) -> list[str]:
    state = world.state(letters, find, **changes)
    return report(state, hunt(world.session(state)))


def test_the_first_bad_one_with_both_sides_and_the_path(world: World) -> None:
    assert told(world, "ggggoggbbb", repeat=1) == [
        "first bad version: 7  title 7",
        "          p==7",
        "",
        "bad       7  title 7: wrong output, rank 0, 1 of 1 run",
        "          y: row 1 of 2",
        "good      6  title 6: passed, 1 of 1 run",
        f"searched  wrong output, rank 0: {CASE}",
        "repeats   seen in 1 of 1 run of the bad end; 1 pass makes a candidate good (chance to miss it 11.1%)",
        "",
        "path  5 of 10 tried, 5 runs, 0 s",
        "  good  0  title 0",
        "  -     1  title 1",
        "  -     2  title 2",
        "  -     3  title 3",
        "  skip  4  title 4  (crash, rank 0)",
        "  -     5  title 5",
        "  good  6  title 6",
        "  bad   7  title 7  <- first bad",
        "  -     8  title 8",
        "  bad   9  title 9",
    ]


def test_the_first_fixed_one(world: World) -> None:
    lines = told(world, "bbgg", Find.FIX)
    assert lines[0] == "first fixed version: 2  title 2"
    assert "  good  2  title 2  <- first fixed" in lines
    assert "bad       1  title 1: wrong output, rank 0, 1 of 1 run" in lines


def test_a_range(world: World) -> None:
    lines = told(world, "guob")
    assert lines[0] == "not decidable: the first bad version is one of 3, 1 to 3; only the last can be tried"
    assert "  skip  1  title 1  (not buildable: SyntaxError)" in lines
    assert not any("<-" in line for line in lines)


def test_the_rate() -> None:
    assert rate_words(estimate(3, 10)) == (
        "seen in 3 of 10 runs of the bad end; 21 passes in a row make a candidate good (chance to miss it 0.9%)"
    )
    assert "1 pass makes" in rate_words(Rate(5, 5, 1))


@pytest.mark.parametrize("find", list(Find))
def test_where_the_runs_lie(world: World, find: Find) -> None:
    state = world.state("gb" if find is Find.BAD else "bg", find)
    outcome = hunt(world.session(state))
    for number, looks in enumerate(state.looks.values()):
        looks[:] = [type(look)(**{**vars(look), "folder": f"000{number}"}) for look in looks]
    lines = report(state, outcome)
    assert [line.split()[-1] for line in lines if "gpucheck report" in line] == [
        str(state.work / "runs" / f"000{number}") for number in range(2)
    ]
