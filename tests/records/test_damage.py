"""Run folders that somebody edited: what has not the type that gpucheck writes is named, and no bug is blamed on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.errors import UsageError
from gpucheck.model.record import Outcome
from gpucheck.records.damage import damage, explained_by_damage
from gpucheck.records.run_folder import read_run
from gpucheck.report import blocks
from gpucheck.report.formats import FORMATS, render
from tests.conftest import Synthetic

Edit = Callable[[Any], object]


@pytest.fixture
def folder(synthetic: Synthetic, tmp_path: Path) -> Path:
    run = synthetic.run(synthetic.plan(cases=2, ranks=2), {(1, 1): Outcome.MISMATCH}, seconds=3.0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/driver-0.json").write_text(json.dumps([{"rank": 1, "text": "Xid", "kind": "k", "number": 7}]))
    return synthetic.write(tmp_path / "run", run)


def put(value: Any, *path: Any) -> Edit:
    def edit(item: Any) -> None:
        for key in path[:-1]:
            item = item[key]
        item[path[-1]] = value

    return edit


def edited(path: Path, edit: Edit, event: str = "") -> None:
    lines = path.read_text().splitlines() if event else [path.read_text()]
    items = [json.loads(line) for line in lines]
    edit(next(item for item in items if not event or item["event"] == event))
    path.write_text("\n".join(json.dumps(item) for item in items) + "\n")


def shown(folder: Path) -> None:
    run = read_run(folder)
    with explained_by_damage(run):
        report = blocks.build(run, conclude(run))
        for suffix in FORMATS:
            render(report, suffix)


def test_a_folder_as_it_was_written_is_whole(folder: Path) -> None:
    shown(folder)
    assert damage(read_run(folder)) == ""


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("plan.json", put(True, "steps", 1, "row"), "plan.json: steps: case: row is True"),
        ("plan.json", put("nan", "environment", "software", "torch"), "plan.json: its software"),
        ("plan.json", put(10**30, "command", 0), "plan.json: command is ["),
        ("plan.json", put(1e300, "created"), "plan.json: created is 1e+300"),
        ("outcome.json", put(None, "seconds"), "outcome.json"),
        ("outcome.json", put([[]], "changes"), "outcome.json"),
    ],
)
def test_what_was_edited_is_named(folder: Path, file: str, edit: Edit, words: str) -> None:
    edited(folder / file, edit)
    with pytest.raises(UsageError) as error:
        shown(folder)
    assert f"{folder} is damaged: {words}" in str(error.value)


@pytest.mark.parametrize(
    ("event", "edit", "words"),
    [
        ("result", put(None, "seconds"), "seconds is None"),
        ("result", put("twice", "repeats"), "repeats is 'twice'"),
        ("result", put([7], "tiles"), "tiles is [7]"),
        ("start", put("long", "import_seconds"), "its start line"),
        ("end", put([], "children"), "its end line"),
    ],
)
def test_a_line_that_was_edited_is_named_with_its_file(folder: Path, event: str, edit: Edit, words: str) -> None:
    edited(folder / "records/rank-00001.jsonl", edit, event)
    assert damage(read_run(folder)) == f"records/rank-00001.jsonl: {words}"


def test_a_line_that_is_no_record_is_a_lost_case(folder: Path) -> None:
    edited(folder / "records/rank-00001.jsonl", put([0], "launches"), "result")
    run = read_run(folder)
    assert run.torn == 1 and run.records[(0, 1)].outcome is Outcome.LOST


def test_a_bug_is_not_blamed_on_a_folder_that_is_whole(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), explained_by_damage(read_run(folder)):
        _ = 1 // 0
