from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpucheck.model.record import Outcome
from tests.cli.conftest import Command
from tests.conftest import Synthetic


@pytest.fixture
def stored(here: Path, synthetic: Synthetic) -> Path:
    """A run with four failing cases on rank 1 of 2."""
    plan = synthetic.plan(cases=4, ranks=2)
    return synthetic.write(here / "run", synthetic.run(plan, {(step, 1): Outcome.MISMATCH for step in range(4)}))


@pytest.mark.parametrize(
    ("outcome", "code"), [(Outcome.PASS, 0), (Outcome.CRASH, 1), (Outcome.LOST, 3), (Outcome.INAPPLICABLE, 5)]
)
def test_the_exit_code_is_that_of_the_run(
    gpucheck: Command, here: Path, synthetic: Synthetic, outcome: Outcome, code: int
) -> None:
    synthetic.write(here / "run", synthetic.run(synthetic.plan(cases=1), {(0, 0): outcome}))
    assert gpucheck("report", "run").code == code


def test_the_report_is_shown_again(gpucheck: Command, stored: Path) -> None:
    answer = gpucheck("report", "run")
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding\n") and answer.err == ""
    assert answer.out.endswith(f"run   {stored.name}\n")


def test_json(gpucheck: Command, stored: Path, here: Path) -> None:
    answer = gpucheck("report", "run", "--json", "-")
    assert answer.code == 1 and json.loads(answer.out)["verdict"] == "FAIL" and answer.err == ""
    answer = gpucheck("report", "run", "--json", "r.json")
    assert answer.code == 1 and json.loads((here / "r.json").read_text())["findings"]


@pytest.mark.parametrize("target", ["gone/r.json", ".", "run", "run/plan.json/x"])
def test_json_that_cannot_be_written(gpucheck: Command, stored: Path, here: Path, target: str) -> None:
    before = sorted(here.rglob("*"))
    answer = gpucheck("report", "run", "--json", target)
    assert answer.code == 2 and answer.message.startswith(f"--json {target} ") and sorted(here.rglob("*")) == before


def test_files_in_the_format_of_their_suffix(gpucheck: Command, stored: Path, here: Path) -> None:
    names = ["r.json", "r.xml", "r.md", "r.prom", "r.html"]
    answer = gpucheck("report", "run", *(part for name in names for part in ("--write", name)))
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding\n") and answer.err == ""
    assert json.loads((here / "r.json").read_text())["verdict"] == "FAIL"
    begins = ["<?xml ", "## FAIL: 1 finding\n", "# HELP gpucheck_", "<!doctype html>\n"]
    for name, begin in zip(names[1:], begins, strict=True):
        assert (here / name).read_text(encoding="utf-8").startswith(begin)
    assert sorted(path.name for path in here.iterdir()) == sorted(["run", *names])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("r.pdf", "--write r.pdf: the suffix chooses the format; known: .json, .xml, "),
        ("report", "--write report: the suffix chooses the format"),
        ("-", "--write -: the suffix chooses the format"),
        ("gone/r.html", "--write gone/r.html cannot be written: there is no folder"),
        ("run/plan.json/r.md", "--write run/plan.json/r.md cannot be written: there is no folder"),
        ("folder.xml", "--write folder.xml is a folder, expected a file"),
    ],
)
def test_files_that_cannot_be_written(gpucheck: Command, stored: Path, here: Path, target: str, words: str) -> None:
    (here / "folder.xml").mkdir()
    before = sorted(here.rglob("*"))
    answer = gpucheck("report", "run", "--write", "r.html", "--write", target)
    assert answer.code == 2 and answer.message.startswith(words) and answer.out == ""
    assert sorted(here.rglob("*")) == before


def test_a_disk_that_is_full_leaves_the_old_report(
    gpucheck: Command, stored: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "r.md").write_text("old")

    def refuse(self: Path, target: object) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    answer = gpucheck("report", "run", "--write", "r.md")
    assert answer.code == 3 and answer.err == "gpucheck: --write r.md cannot be written: No space left on device\n"
    assert (here / "r.md").read_text() == "old" and len(list(here.iterdir())) == 2


def test_the_schema_needs_no_run(gpucheck: Command, here: Path) -> None:
    answer = gpucheck("report", "--schema")
    assert answer.code == 0 and json.loads(answer.out)["properties"]["schema"] == {"const": 2} and answer.err == ""


def test_a_report_of_nothing(gpucheck: Command, here: Path) -> None:
    answer = gpucheck("report")
    assert answer.code == 2 and answer.message.startswith("report needs the folder of a run") and answer.out == ""


def test_devices_are_written_to_and_not_replaced(gpucheck: Command, stored: Path, here: Path) -> None:
    """A rename over /dev/null would break the machine of whoever runs this as root."""
    (here / "null").symlink_to("/dev/null")
    assert gpucheck("report", "run", "--json", "null").code == 1
    assert (here / "null").is_symlink() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (".", "is no run folder: it holds no plan.json"),
        ("gone", "is no run folder"),
        ("run/plan.json", "is no folder"),
    ],
)
def test_folders_that_are_no_run(gpucheck: Command, stored: Path, folder: str, words: str) -> None:
    answer = gpucheck("report", folder)
    assert answer.code == 2 and words in answer.message and answer.out == ""


def test_a_damaged_or_newer_run(gpucheck: Command, stored: Path) -> None:
    for content, words in (("{", "cannot be read"), ('{"schema": 99}', "use a newer gpucheck")):
        (stored / "plan.json").write_text(content)
        answer = gpucheck("report", "run")
        assert answer.code == 2 and words in answer.message


def test_a_run_under_way_is_no_pass(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    synthetic.write(here / "run", synthetic.run(synthetic.plan()), outcome=False)
    answer = gpucheck("report", "run")
    assert answer.code == 3 and "outcome.json is missing" in answer.out
