"""What a rank or its child printed before it died is in the report, and so are the exceptions behind an exception."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.end_to_end.conftest import Finished, Lab

SOURCE = Path(__file__).parents[1] / "data" / "gives_up.py"
REASON = "the routing table of layer 3 was never loaded"


@pytest.fixture(scope="module")
def run(lab: Lab) -> Finished:
    options = ["--check-file", str(SOURCE), "--experiments", "0", "--write", str(lab.new_folder() / "r.xml")]
    finished: Finished = lab.finish(*options, scenario=None)
    assert finished.code == 1, finished.text
    ElementTree.parse(options[-1])
    return finished


@pytest.mark.parametrize(("way", "code"), [("exits", 7), ("floods", 7), ("stdout", 3), ("sys_exit", 1)])
def test_a_child_that_ends_tells_why_where_and_in_which_file(run: Finished, way: str, code: int) -> None:
    assert run.outcomes(f"gives_up/{way}") == ["pass", "crash"]
    lines = run.lines(f"gives_up/{way}")
    assert f"ended with exit code {code}" in lines and REASON in lines
    place = "give_up" if way == "sys_exit" else f"os._exit({code}) at gives_up.py:"
    assert place in lines and REASON in run.text
    (log,) = [line.split()[-1] for line in lines.splitlines() if line.startswith("log ")]
    assert REASON in (run.folder / log.split(", ")[-1]).read_text() and len(lines.splitlines()) < 30


def test_chained_exceptions_are_both_told_with_the_place(run: Finished) -> None:
    lines = run.lines("gives_up/chained")
    assert "RuntimeError: the worker failed; raised from KeyError: " in lines and REASON in lines
    assert "raised at gives_up.py:" in lines


def test_bytes_that_are_no_text_break_no_report(run: Finished) -> None:
    assert REASON in run.lines("gives_up/binary") and "raised at gives_up.py:" in run.lines("gives_up/binary")
    assert "\x1b" not in run.text and json.loads((run.folder / "report.json").read_text())


def test_the_last_words_of_a_rank_itself_are_told(lab: Lab) -> None:
    scenario = lab.new_folder() / "judge.toml"
    scenario.write_text('[[cases]]\ncheck = "gives_up"\nway = "judge"\n')
    run = lab.finish("--check-file", str(SOURCE), "--experiments", "0", scenario=scenario)
    assert run.code == 3 and run.outcomes("gives_up/judge") == ["pass", "lost"]
    lines = run.lines("gives_up/judge")
    assert "its supervisor ended with exit code 9" in lines and REASON in lines
    assert "os._exit(9) at gives_up.py:" in lines
