"""What is printed at the end of a search."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from gpucheck.tools.bisect.engine import run_search
from gpucheck.tools.bisect.repeats import Rate, estimate
from gpucheck.tools.bisect.saved_search import Find
from gpucheck.tools.bisect.search_text import rate_words, report
from tests.tools.bisect.conftest import World


def told(world: World, letters: str, find: Find = Find.BAD, **changes: object) -> str:
    state = world.state(letters, find, **changes)
    return re.sub(
        r"(runs), \d+ s$", r"\1, 0 s", "\n".join(report(state, run_search(world.session(state)))), flags=re.MULTILINE
    )


@pytest.mark.parametrize(
    ("letters", "find", "changes"),
    [("ggggoggbbb", Find.BAD, {"repeat": 1}), ("bbgg", Find.FIX, {}), ("guob", Find.BAD, {})],
    ids=["first bad", "first fixed", "range"],
)
def test_what_a_search_tells(
    world: World, snapshot: Callable[[str], None], letters: str, find: Find, changes: dict[str, int]
) -> None:
    snapshot(told(world, letters, find, **changes))


@pytest.mark.parametrize(("rate", "words"), [(estimate(3, 10), "21 passes"), (Rate(5, 5, 1), "1 pass makes")])
def test_the_rate(rate: Rate, words: str) -> None:
    assert words in rate_words(rate)


@pytest.mark.parametrize("find", list(Find))
def test_where_the_runs_lie(world: World, find: Find) -> None:
    state = world.state("gb" if find is Find.BAD else "bg", find)
    outcome = run_search(world.session(state))
    for number, observations in enumerate(state.observations.values()):
        observations[:] = [
            type(observation)(**{**vars(observation), "folder": f"000{number}"}) for observation in observations
        ]
    lines = report(state, outcome)
    assert [line.split()[-1] for line in lines if "gpucheck report" in line] == [
        str(state.work / "runs" / f"000{number}") for number in range(2)
    ]
