"""Which patches of a series matter, over a library of one file whose lines say what they do."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from gpucheck.library.copies import PACKAGE
from gpucheck.model.errors import UsageError
from gpucheck.tools.bisect.engine import Outcome, run_search
from gpucheck.tools.bisect.observation import Observation
from gpucheck.tools.bisect.run_once import Prepared
from gpucheck.tools.bisect.saved_search import Find, State, load
from gpucheck.tools.bisect.search_text import report
from gpucheck.tools.bisect.session import Session
from gpucheck.tools.bisect.signature import Answer
from gpucheck.tools.bisect.sources.patch_series import Patches
from gpucheck.tools.bisect.target import Target
from tests.tools.bisect.conftest import CASE, FAILED, OTHER, PASSED, Teller

TEXT = "".join(f"line{n} = 0\n# between\n# between\n# between\n" for n in range(6))


@pytest.fixture
def series(library: Path, tmp_path: Path) -> Patches:
    """Six patches, each of which sets one line of ``target_info.py``."""
    (library / PACKAGE / "target_info.py").write_text(TEXT)
    folder = tmp_path / "patches"
    folder.mkdir()
    for number in range(6):
        write_patch(folder / f"{number}.patch", TEXT, TEXT.replace(f"line{number} = 0", f"line{number} = 1"))
    return Patches.in_folder(folder, library)


def write_patch(path: Path, old: str, new: str) -> None:
    name = f"{PACKAGE}/target_info.py"
    lines = [text.splitlines(keepends=True) for text in (old, new)]
    path.write_text("".join(difflib.unified_diff(*lines, f"a/{name}", f"b/{name}")))


def searched(
    work: Path, source: Patches, green: Callable[[set[int]], bool], find: Find = Find.FIX, bad: Observation = FAILED
) -> tuple[Outcome, State, list[set[int]]]:
    """Searches; a library is green where the lines that are set make it so."""
    runs = []

    def take(target: Target, prepared: Prepared, folder: Path) -> Observation:
        text = (prepared.library / PACKAGE / "target_info.py").read_text()
        lines = {n for n in range(6) if f"line{n} = 1" in text}
        runs.append(lines)
        return PASSED if green(lines) else bad

    work.mkdir(exist_ok=True)
    state = State(work, source, Target("smoke", (CASE,), "cpu"), find, repeat=1)
    outcome = run_search(Session(state, take, Teller()))
    return outcome, state, runs


def names(outcome: Outcome) -> list[str]:
    return [candidate.name for candidate in outcome.answer]


@pytest.mark.parametrize("needed", range(6))
def test_the_one_of_six_that_matters(series: Patches, tmp_path: Path, needed: int) -> None:
    outcome, state, runs = searched(tmp_path / "w", series, lambda lines: needed in lines)
    assert names(outcome) == [f"{needed}.patch"]
    assert runs[:2] == [set(), set(range(6))], "both ends are verified first"
    assert len(runs) <= 8
    assert (outcome.good.name, outcome.bad.name) == (f"{needed}.patch", "no patch")
    text = report(state, outcome)
    assert text[0] == f"{needed}.patch turns the case green (1 of 6 patches)"
    assert text[1].strip() == series.files[needed]


@pytest.mark.parametrize("pair", list(itertools.combinations(range(6), 2)))
def test_a_pair_that_matters_only_together(series: Patches, tmp_path: Path, pair: tuple[int, int]) -> None:
    outcome, state, runs = searched(tmp_path / "w", series, lambda lines: set(pair) <= lines)
    assert names(outcome) == [f"{number}.patch" for number in pair]
    assert len(runs) <= 22
    first, second = names(outcome)
    assert report(state, outcome)[0] == f"{first} and {second} turn the case green, only together (2 of 6 patches)"
    assert outcome.notes == (f"without {first}: bad", f"without {second}: bad")


def test_parts_that_do_not_apply_are_skipped(series: Patches, tmp_path: Path) -> None:
    """The last patch changes the line that the third one made, so it applies only behind it."""
    third = TEXT.replace("line3 = 0", "line3 = 1")
    write_patch(Path(series.files[5]), third, third.replace("line3 = 1", "line3 = 1; line5 = 1"))
    outcome, state, runs = searched(tmp_path / "w", series, lambda lines: 5 in lines)
    assert names(outcome) == ["3.patch", "5.patch"]
    assert outcome.notes[0].startswith("without 3.patch: skip (") and "does not apply" in outcome.notes[0]
    assert Answer.SKIP in [answer for _, answer in outcome.path]
    assert any("does not apply" in line for line in report(state, outcome) if line.startswith("  skip"))


def test_another_failure_is_not_green(series: Patches, tmp_path: Path) -> None:
    def take(target: Target, prepared: Prepared, folder: Path) -> Observation:
        text = (prepared.library / PACKAGE / "target_info.py").read_text()
        return PASSED if text.count("= 1") == 6 else OTHER if "line2 = 1" in text else FAILED

    (tmp_path / "w").mkdir()
    state = State(tmp_path / "w", series, Target("smoke", (CASE,), "cpu"), Find.FIX, repeat=1)
    assert len(names(run_search(Session(state, take, Teller())))) == 6


def test_which_patch_breaks_the_case(series: Patches, tmp_path: Path) -> None:
    outcome, state, _ = searched(tmp_path / "w", series, lambda lines: 4 not in lines, Find.BAD)
    assert names(outcome) == ["4.patch"]
    assert (outcome.good.name, outcome.bad.name) == ("no patch", "4.patch")
    assert report(state, outcome)[0] == "4.patch breaks the case (1 of 6 patches)"


def test_wrong_ends(series: Patches, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the bad end no patch does not show"):
        searched(tmp_path / "w", series, lambda lines: True)
    with pytest.raises(UsageError, match="the good end 0.patch, 1.patch.* shows what is searched for"):
        searched(tmp_path / "v", series, lambda lines: False)
    Path(series.files[2]).write_text(Path(series.files[2]).read_text().replace("line2 = 0", "other = 0"))
    with pytest.raises(UsageError, match="the whole series cannot be applied: .*2.patch does not apply"):
        searched(tmp_path / "u", series, lambda lines: True)


def test_it_goes_on_after_an_interruption(series: Patches, tmp_path: Path) -> None:
    outcome, state, runs = searched(tmp_path / "w", series, lambda lines: {1, 4} <= lines)
    again = load(tmp_path / "w")

    def take(target: Target, prepared: Prepared, folder: Path) -> Observation:
        raise AssertionError("everything is known")

    assert run_search(Session(again, take, Teller())) == outcome
