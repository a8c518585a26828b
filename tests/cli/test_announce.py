"""What the place that a run happens in is told, and that it has no say in the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpucheck.model.record import Outcome
from gpucheck.report import announce
from tests.cli.conftest import Answer, Command, FakeRanks
from tests.conftest import Synthetic


@pytest.fixture
def failing(gpucheck: Command, ranks: FakeRanks, library: str, here: Path) -> Command:
    """A run with one failure; anything but its exit code 1 fails the test."""
    (here / "mine.toml").write_text('[[cases]]\ncheck = "topk"\n')
    ranks.outcomes = {(0, 1): Outcome.MISMATCH}

    def run(*options: str) -> Answer:
        answer = gpucheck("run", "mine.toml", "--library", library, "--nproc", "2", "-q", *options)
        assert answer.code == 1 and answer.out.startswith("FAIL  ")
        return answer

    return run


def test_the_step_summary_is_appended_to(failing: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary"))
    assert failing().err == ""
    first = (here / "summary").read_text()
    assert (
        first.startswith("## FAIL: 1 finding, no GPU was checked\n")
        and "<summary>1 · <b>wrong output</b> · rank 1 · topk" in first
    )
    assert failing().err == ""
    whole = (here / "summary").read_text()
    assert whole.startswith(first + "\n## FAIL") and whole.count("## FAIL") == 2


@pytest.mark.parametrize("target", ["gone/summary", "."])
def test_a_summary_that_cannot_be_written_is_a_note(
    failing: Command, here: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", target)
    error = failing().err
    assert error.startswith(f"gpucheck: note: the step summary {target} cannot be written: ") and error.count("\n") == 1


def test_a_full_summary_is_left_as_it_is(failing: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "summary").write_text("x" * (announce.SUMMARY_LIMIT - 100))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary"))
    assert "1048476 of 1048576 bytes are taken" in failing().err
    assert (here / "summary").stat().st_size == announce.SUMMARY_LIMIT - 100


def test_a_summary_nearly_full_takes_what_fits(failing: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "summary").write_text("x" * (announce.SUMMARY_LIMIT - 700))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary"))
    assert failing().err == "" and (here / "summary").stat().st_size <= announce.SUMMARY_LIMIT
    assert "1 further finding left out here" in (here / "summary").read_text()


def test_the_termination_log_gets_one_line(failing: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "log").write_text("of an earlier container\n" * 99)
    monkeypatch.setenv("GPUCHECK_TERMINATION_LOG", str(here / "log"))
    assert failing().err == ""
    assert (
        (here / "log")
        .read_text()
        .startswith("FAIL: 1 finding, no GPU was checked; first: wrong output on rank 1 (topk); mine · 2 ranks on")
    )
    assert (here / "log").read_text().count("\n") == 1


def test_the_mounted_log_is_written_where_there_is_one_and_never_made(
    failing: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPUCHECK_TERMINATION_LOG")
    monkeypatch.setattr(announce, "MOUNTED_LOG", here / "mounted")
    assert failing().err == "" and not (here / "mounted").exists()
    (here / "mounted").write_text("")
    number = (here / "mounted").stat().st_ino
    assert failing().err == "" and (here / "mounted").read_text().startswith("FAIL: 1 finding, no GPU was checked; ")
    assert (here / "mounted").stat().st_ino == number, "a mount cannot be replaced"
    monkeypatch.setenv("GPUCHECK_TERMINATION_LOG", "")
    (here / "mounted").write_text("")
    assert failing().err == "" and (here / "mounted").read_text() == ""


def test_a_log_that_cannot_be_written_is_a_note(failing: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCHECK_TERMINATION_LOG", "gone/log")
    assert (
        failing().err == "gpucheck: note: the termination log gone/log cannot be written: No such file or directory\n"
    )


def test_stored_runs_are_told_to_nobody(
    gpucheck: Command, here: Path, synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.write(here / "run", synthetic.run(synthetic.plan()))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary"))
    monkeypatch.setenv("GPUCHECK_TERMINATION_LOG", str(here / "log"))
    assert gpucheck("report", "run").code == 0 and [path.name for path in here.iterdir()] == ["run"]
