"""``gpucheck run --bisect``: every way to end, in the terms of ``git bisect run``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.model.record import Outcome
from tests.cli.conftest import Command, FakeRanks


@pytest.fixture
def command(here: Path, library: str) -> list[str]:
    (here / "mine.toml").write_text('[[cases]]\ncheck = "topk"\n')  # exact and normal
    return ["run", "mine.toml", "--device", "cpu", "--library", library, "--bisect", "--quiet"]


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([Outcome.PASS, Outcome.PASS], 0),
        ([Outcome.MISMATCH, Outcome.PASS], 1),
        ([Outcome.HANG, Outcome.INAPPLICABLE], 1),
        ([Outcome.INAPPLICABLE, Outcome.INAPPLICABLE], 125),
        ([Outcome.PASS, Outcome.INAPPLICABLE], 125),
        ([Outcome.PASS, Outcome.LOST], 128),
        ([Outcome.PASS, Outcome.HARNESS], 128),
        ([Outcome.INAPPLICABLE, Outcome.LOST], 128),
    ],
)
def test_by_outcome(
    gpucheck: Command, ranks: FakeRanks, command: list[str], outcomes: list[Outcome], code: int
) -> None:
    ranks.outcomes = {(step, 0): outcome for step, outcome in enumerate(outcomes)}
    assert gpucheck(*command).code == code


@pytest.mark.parametrize("ending", [{"code": 1}, {"timed_out": True, "code": None}, {"signal": 2}, {"signal": 15}])
def test_a_run_that_did_not_end_well(
    gpucheck: Command, ranks: FakeRanks, command: list[str], ending: dict[str, object]
) -> None:
    ranks.ending = ending
    assert gpucheck(*command).code == 128


@pytest.mark.parametrize(
    "wrong",
    [
        ["--nonsense"],
        ["--nproc", "x"],
        ["--case", "gone"],
        ["--device", "cuda"],
        ["--json", "gone/x"],
        ["--timeout", "0"],
    ],
)
def test_a_mistake_of_the_user_never_makes_a_commit_bad(
    gpucheck: Command, ranks: FakeRanks, command: list[str], wrong: list[str]
) -> None:
    assert gpucheck(*command, *wrong).code == 128


def test_a_fault_of_gpucheck_never_makes_a_commit_bad(
    gpucheck: Command, ranks: FakeRanks, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpucheck.plan.bind.build", lambda *_, **__: 1 / 0)
    answer = gpucheck(*command)
    assert answer.code == 128 and "ZeroDivisionError" in answer.err


def test_a_commit_without_a_usable_library(
    gpucheck: Command, ranks: FakeRanks, command: list[str], library: str
) -> None:
    package = Path(library.removeprefix("path:")) / "triton_kernels"
    (package / "tensor.py").unlink()
    answer = gpucheck(*command)
    assert answer.code == 125 and "no genuine copy of triton_kernels" in answer.message
    assert not Path("runs").exists()
    command[command.index(library)] = "path:gone"
    assert gpucheck(*command).code == 128, "a folder that is not there is a mistake"


def test_other_commands_keep_their_codes(gpucheck: Command, here: Path) -> None:
    assert gpucheck("report", "--bisect").code == 2


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_takes_the_codes(tmp_path: Path) -> None:
    """What git itself makes of 0, 1 and 125."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x", *arguments]
        answer = subprocess.run(command, capture_output=True, text=True)
        return answer.stdout + answer.stderr

    git("init", "-q")
    for number, code in enumerate((0, 0, 125, 0, 1, 1, 1)):
        (tmp_path / "code").write_text(f"{code} {number}")
        git("add", "-A")
        git("commit", "-qm", f"commit {number}")
    git("bisect", "start", "HEAD", "HEAD~6")
    script = "import sys; sys.exit(int(open('code').read().split()[0]))"
    said = git("bisect", "run", sys.executable, "-c", script)
    assert "is the first bad commit" in said and "commit 4" in said
