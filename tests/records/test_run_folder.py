from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UsageError
from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import finite, read_plan, read_run, write_json
from gpucheck.records.writer import RecordWriter
from tests.conftest import Synthetic


@pytest.fixture
def run_dir(synthetic: Synthetic, tmp_path: Path) -> Path:
    """Two cases on two ranks, all passed."""
    return synthetic.write(tmp_path / "run", synthetic.run(synthetic.plan(cases=2, ranks=2)))


def rank_file(run_dir: Path, rank: int = 1) -> Path:
    return run_dir / "records" / f"rank-{rank:05d}.jsonl"


def edit(run_dir: Path, old: str, new: str, rank: int = 1) -> None:
    path = rank_file(run_dir, rank)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def append(run_dir: Path, item: dict[str, Any], rank: int = 1) -> None:
    with open(rank_file(run_dir, rank), "a") as file:
        file.write(json.dumps(item) + "\n")


def test_round_trip(synthetic: Synthetic, tmp_path: Path) -> None:
    plan = synthetic.plan(cases=2, ranks=2, optional=[1])
    odd = synthetic.mismatch(expected=math.inf, got=-math.inf, bound=math.nan, ulps=None)
    run = synthetic.run(
        plan,
        {
            (0, 1): synthetic.record(plan, 0, 1, Outcome.MISMATCH, mismatches=[odd], tightness=math.inf),
            (1, 0): Outcome.INAPPLICABLE,
            (1, 1): synthetic.record(plan, 1, 1, Outcome.ERROR, message="Fehler: ü\n{}", traceback='"\\'),
        },
    )
    again = read_run(synthetic.write(tmp_path / "run", run))
    back = again.records.pop((0, 1))
    first = run.records.pop((0, 1))
    assert again.records == run.records and again.plan == plan and again.outcome == run.outcome and again.torn == 0
    (mismatch,) = back.mismatches
    assert (mismatch.expected, mismatch.got, back.tightness) == (math.inf, -math.inf, math.inf)
    assert math.isnan(mismatch.bound) and back.outcome is first.outcome
    assert sorted(again.starts) == sorted(again.ends) == [0, 1]


def test_a_missing_rank_is_lost(run_dir: Path) -> None:
    rank_file(run_dir).unlink()
    run = read_run(run_dir)
    for step in (0, 1):
        record = run.records[(step, 1)]
        assert (record.outcome, record.message, record.rank) == (Outcome.LOST, "the rank never started", 1)
        assert record.case == run.plan.steps[step].case.id and record.placement == "pinned"
        assert run.records[(step, 0)].outcome is Outcome.PASS


def test_no_records_at_all(run_dir: Path) -> None:
    for rank in (0, 1):
        rank_file(run_dir, rank).unlink()
    (run_dir / "records").rmdir()
    assert {record.outcome for record in read_run(run_dir).records.values()} == {Outcome.LOST}


def test_begin_without_result_names_the_culprit(run_dir: Path) -> None:
    lines = rank_file(run_dir).read_text().splitlines(keepends=True)
    begun = next(i for i, line in enumerate(lines) if '"begin","step":1' in line)
    rank_file(run_dir).write_text("".join(lines[: begun + 1]))
    assert read_run(run_dir).records[(1, 1)].message == "the rank ended while this case ran"
    rank_file(run_dir).write_text("".join(line for line in lines[: begun + 1] if '"result"' not in line))
    assert read_run(run_dir).records[(0, 1)].message == "the rank ended before it had judged this case"
    rank_file(run_dir).write_text("".join(lines[:begun]))
    run = read_run(run_dir)
    assert run.records[(1, 1)].message == "the rank ended before this case"
    assert run.records[(0, 1)].outcome is Outcome.PASS


@pytest.mark.parametrize("cut", [1, 40, 5])
def test_a_torn_last_line_is_lost_not_passed(run_dir: Path, cut: int) -> None:
    lines = rank_file(run_dir).read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"result"' in line)
    rank_file(run_dir).write_text("".join(lines[:last]) + lines[last].rstrip()[:-cut])
    run = read_run(run_dir)
    assert run.records[(1, 1)].outcome is Outcome.LOST and run.torn == 1
    assert run.records[(0, 1)].outcome is Outcome.PASS


def test_bytes_that_are_no_text_are_torn(run_dir: Path) -> None:
    with open(rank_file(run_dir), "ab") as file:
        file.write(b"\xff\xfe\x00\n[1, 2]\n3\nnull\n")
    run = read_run(run_dir)
    assert run.torn == 4 and run.records[(1, 1)].outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"outcome":"pass"', '"outcome":"splendid"'),
        ('"step":0,"case"', '"step":7,"case"'),
        ('"step":0,"case"', '"step":-2,"case"'),
        ('"step":0,"case"', '"step":"0","case"'),
        ('"step":0,"case"', '"case"'),
        ('"case":"matmul/0/exact"', '"case":"matmul/9/exact"'),
        ('"rank":1,"outcome"', '"rank":0,"outcome"'),
        ('"mismatches":[]', '"mismatches":[{}]'),
        ('"mismatches":[]', '"mismatches":3'),
    ],
)
def test_results_that_are_not_of_this_plan_leave_their_case_lost(run_dir: Path, old: str, new: str) -> None:
    edit(run_dir, old, new)
    run = read_run(run_dir)
    assert run.records[(0, 1)].outcome is Outcome.LOST and run.torn >= 1
    assert set(run.records) == {(step, rank) for step in (0, 1) for rank in (0, 1)}


def test_records_of_ranks_beyond_the_plan_are_not_part_of_the_run(run_dir: Path, synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=9)
    RecordWriter(run_dir, 7).result(synthetic.record(plan, 0, 7, Outcome.MISMATCH))
    (run_dir / "records" / "rank-old.jsonl").write_text("{}\n")
    run = read_run(run_dir)
    assert (0, 7) not in run.records and run.torn == 1


def test_unknown_keys_and_events_are_passed_over(run_dir: Path) -> None:
    edit(run_dir, '"message":""', '"message":"","novelty":{"a":1}')
    append(run_dir, {"event": "novelty"})
    run = read_run(run_dir)
    assert run.torn == 0 and run.records[(0, 1)].outcome is Outcome.PASS


@pytest.mark.parametrize("order", [(Outcome.MISMATCH, Outcome.PASS), (Outcome.PASS, Outcome.MISMATCH)])
def test_a_second_result_never_hides_a_failure(
    run_dir: Path, synthetic: Synthetic, order: tuple[Outcome, Outcome]
) -> None:
    plan = synthetic.plan(cases=2, ranks=2)
    edit(run_dir, '"case":"matmul/0/exact"', '"case":"elsewhere"')
    writer = RecordWriter(run_dir, 1)
    for outcome in order:
        writer.result(synthetic.record(plan, 0, 1, outcome))
    assert read_run(run_dir).records[(0, 1)].outcome is Outcome.MISMATCH


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "is no run folder: it holds no plan.json"), (tmp_path / "gone", "no run folder")):
        with pytest.raises(UsageError, match=words):
            read_run(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no folder; give the folder of a run"):
        read_run(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the plan"),
        ("{}", "is not the plan"),
        ('{"schema": "1"}', "is not the plan"),
        ('{"schema": 1}', "is damaged"),
        ('{"schema": 1, "steps": []}', "is damaged"),
        ('{"schema": 1, "steps": [3]}', "is damaged"),
        ('{"schema": 2}', "has schema 2, this gpucheck reads up to 1: use a newer gpucheck"),
    ],
)
def test_plans_that_cannot_be_used(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UsageError, match=words):
        read_plan(tmp_path)


def test_a_condition_that_is_unknown_is_refused_and_one_that_an_older_plan_lacks_is_not(run_dir: Path) -> None:
    path = run_dir / "plan.json"
    item = json.loads(path.read_text())
    del item["steps"][1]["swap"]
    path.write_text(json.dumps(item))
    assert read_plan(run_dir).steps[1].conditions == Conditions()
    item["steps"][1]["graph"] = "captured"
    path.write_text(json.dumps(item))
    words = r'matmul/1/exact is to run under .*\n  found     graph = "captured"\n  expected  placement, .*\n  try  '
    with pytest.raises(UsageError, match=words):
        read_plan(run_dir)


def test_a_plan_of_bytes_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(tmp_path)
    (tmp_path / "plan.json").unlink()
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_damaged_outcome_is_an_error(run_dir: Path, content: str) -> None:
    (run_dir / "outcome.json").write_text(content)
    with pytest.raises(UsageError, match=r"outcome.json (cannot be read|is damaged)"):
        read_run(run_dir)


def test_a_run_without_outcome_has_none(run_dir: Path) -> None:
    (run_dir / "outcome.json").unlink()
    assert read_run(run_dir).outcome == {}


def test_written_json_is_strict(tmp_path: Path) -> None:
    content = {"a": math.nan, "b": [math.inf, (-math.inf, 1.5)], "c": {"d": math.nan}}
    write_json(tmp_path / "x.json", content)

    def refuse(token: str) -> None:
        raise AssertionError(token)

    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"a": "nan", "b": ["inf", ["-inf", 1.5]], "c": {"d": "nan"}}
    assert finite(content) == json.loads(text)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_json_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    with pytest.raises(OSError):
        write_json(tmp_path / "no" / "x.json", {})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_links_are_written_through_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "real.json").read_text()) == [1]
