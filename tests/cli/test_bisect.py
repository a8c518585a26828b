from __future__ import annotations

import difflib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library.library_option import resolve
from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UsageError
from gpucheck.model.record import Outcome
from gpucheck.tools.bisect.observation import Failure, Observation, State
from gpucheck.tools.bisect.sources.base import Candidate
from gpucheck.tools.bisect.sources.packages import Packages
from tests.cli.conftest import Command
from tests.conftest import Synthetic

CASE = "topk/bf16/m1-e13-top4/exact"
PASSED = Observation(State.PASSED, CASE)
FAILED = Observation(State.FAILED, CASE, (Failure("kernel bug: wrong output", "kernel bug", (0,), ("y: row 1",)),))


@pytest.fixture
def patches(here: Path, library: str) -> list[str]:
    """The options of a search over three patches to the stand-in library."""
    package = Path(library.removeprefix("path:")) / "triton_kernels"
    old = (package / "tensor.py").read_text()
    (here / "series").mkdir()
    for number in range(3):
        name = f"made{number}.py"
        lines = difflib.unified_diff([], [f"# {number}\n"], "/dev/null", f"b/triton_kernels/{name}")
        (here / "series" / f"{number}.patch").write_text("".join(lines))
    assert old
    return ["--patches", "series", "--library", library, "--scenario", "smoke", "--case", CASE, "--device", "cpu"]


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the runs: green where the library has made1.py. Raises what is put into it instead, if anything."""
    raises: list[Any] = []

    def take(target: Any, prepared: Any, folder: Path) -> Observation:
        if raises:
            raise raises.pop()
        return PASSED if (prepared.library / "triton_kernels" / "made1.py").exists() else FAILED

    monkeypatch.setattr("gpucheck.tools.bisect.run_once.take", take)
    return raises


def test_a_search_prints_what_it_finds(gpucheck: Command, here: Path, patches: list[str], takes: list[Any]) -> None:
    answer = gpucheck("bisect", *patches, "--out", "w")
    assert answer.code == 0 and answer.err == ""
    assert "bad   no patch\n      5 of 5 runs: kernel bug: wrong output, rank 0\n" in answer.out
    assert "\n1.patch turns the case green (1 of 3 patches)\n" in answer.out
    assert json.loads((here / "w" / "state.json").read_text())["result"]["exact"] is True


@pytest.mark.parametrize(("options", "seconds"), [([], 600.0), (["--timeout", "5"], 5.0)])
def test_a_run_may_take_what_its_scenario_grants(
    gpucheck: Command, here: Path, patches: list[str], takes: list[Any], options: list[str], seconds: float
) -> None:
    assert gpucheck("bisect", *patches, *options, "--out", "w").code == 0
    assert json.loads((here / "w" / "state.json").read_text())["target"]["timeout"] == seconds


def test_an_interrupted_search_says_how_to_go_on(
    gpucheck: Command, here: Path, patches: list[str], takes: list[Any]
) -> None:
    takes.append(KeyboardInterrupt())
    answer = gpucheck("bisect", *patches, "--out", "w", "--repeat", "1")
    assert answer.code == 130
    assert answer.err == f"interrupted after 0 runs; go on with: gpucheck bisect --resume {here / 'w' / 'state.json'}\n"
    answer = gpucheck("bisect", "--resume", "w")
    assert answer.code == 0 and "1.patch turns the case green" in answer.out
    again = gpucheck("bisect", "--resume", "w/state.json")
    assert again.code == 0 and again.out == answer.out


def test_a_terminated_search_ends_with_its_signal(gpucheck: Command, patches: list[str], takes: list[Any]) -> None:
    takes.append(KeyboardInterrupt(143))
    assert gpucheck("bisect", *patches).code == 143


def test_infrastructure_that_fails_keeps_the_search(
    gpucheck: Command, here: Path, patches: list[str], takes: list[Any]
) -> None:
    from gpucheck.model.errors import InfrastructureError

    takes.append(InfrastructureError("no network"))
    answer = gpucheck("bisect", *patches, "--out", "w")
    assert answer.code == 3
    assert answer.err.splitlines() == [
        f"what was seen is kept; go on with: gpucheck bisect --resume {here / 'w' / 'state.json'}",
        "gpucheck: no network",
    ]


def test_ends_that_are_not_what_they_should_be(gpucheck: Command, patches: list[str], takes: list[Any]) -> None:
    answer = gpucheck("bisect", *patches, "--find", "bad")
    assert answer.code == 2 and answer.message.startswith("the bad end 0.patch, 1.patch, 2.patch does not show")


GIVEN = ["--scenario", "smoke", "--case", CASE, "--device", "cpu"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "give one of --repo DIR, --wheel NAME, --package NAME and --patches DIR"),
        (["--repo", ".", "--wheel", "x", *GIVEN], 2, "give one of --repo"),
        (["--patches", "series"], 2, "say what fails: the folder of a stored run, or --case ID"),
        (["--patches", "gone", *GIVEN], 2, "--patches gone: there is no such folder"),
        (["--patches", "empty", *GIVEN], 2, "--patches empty: no file there ends in .patch or .diff"),
        (["--patches", "series", "--good", "x", *GIVEN], 2, "--good does not go with --patches"),
        (["--patches", "series", "--from", "1", *GIVEN], 2, "--from does not go with --patches"),
        (["--patches", "series", "--find", "it", *GIVEN], 2, "--find is 'it', expected bad (or fault) or fix"),
        (["--repo", ".", "--to", "1", *GIVEN], 2, "--to does not go with --repo"),
        (["--repo", ".", "--library", "installed", *GIVEN], 2, "--library does not go with a commit: each is"),
        (["--repo", ".", *GIVEN], 2, "--find bad in a repository needs --good REV"),
        (["--repo", ".", "--find", "fix", *GIVEN], 2, "--find fix in a repository needs --bad REV"),
        (["--wheel", "vllm", "--from", "1", *GIVEN], 2, "--wheel needs --from VERSION and --to VERSION"),
        (["--package", "triton", *GIVEN], 2, "--package needs --from VERSION and --to VERSION"),
        (["--patches", "series", "--scenario", "nope", "--case", CASE], 2, "unknown scenario 'nope'"),
        (["--patches", "series", "--scenario", "smoke", "--case", "nope"], 2, "scenario smoke has no case 'nope'"),
        (["--patches", "series", *GIVEN[:4], "--device", "tpu"], 2, "--device is 'tpu'"),
        (["--patches", "series", *GIVEN, "--placement", "x"], 2, "--placement is 'x'"),
        (["--patches", "series", *GIVEN, "--check-file", "mine.py"], 2, "--check-file"),
        (["--patches", "series", "--scenario", "empty.toml", "--case", CASE], 2, "has no case"),
        (["--patches", "series", *GIVEN, "--timeout", "0"], 2, "--timeout is 0, expected seconds above 0"),
        (["--patches", "series", *GIVEN, "--out", "occupied"], 2, "is not empty, expected a folder that is new"),
        (["--patches", "series", "occupied"], 2, "occupied is no run folder"),
        (["--resume", "gone"], 2, "--resume gone: cannot be read"),
        (["--resume", "gone", "--seed", "0"], 2, "--resume continues a search as it was started"),
    ],
)
def test_errors_are_one_message_and_leave_nothing_behind(
    gpucheck: Command, here: Path, patches: list[str], takes: list[Any], arguments: list[str], code: int, words: str
) -> None:
    (here / "empty").mkdir()
    (here / "occupied").mkdir()
    (here / "empty.toml").write_text("")
    (here / "occupied" / "old").write_text("")
    before = sorted(here.rglob("*"))
    answer = gpucheck("bisect", *arguments)
    assert answer.code == code and words in answer.message
    assert sorted(here.rglob("*")) == before


def test_the_library_of_a_stored_run(
    gpucheck: Command, here: Path, patches: list[str], takes: list[Any], library: str, synthetic: Synthetic
) -> None:
    """Its patches are tried on what it tested, as long as that is still there."""
    from gpucheck.library.library_option import parse_source

    copy = resolve(parse_source(library))
    plan = synthetic.plan(cases=1, device="cpu", command=["gpucheck", "run", "smoke"])
    tested = {**plan.library, "package": str(copy.package), "content": copy.content}
    step = replace(plan.steps[0], case=replace(plan.steps[0].case, id=CASE), conditions=Conditions(placement="cpu"))
    plan = replace(plan, library=tested, steps=(step,))
    synthetic.write(here / "run", synthetic.run(plan, {(0, 0): Outcome.MISMATCH}))
    answer = gpucheck("bisect", "run", "--patches", "series", "--out", "w")
    assert answer.code == 0 and "1.patch turns the case green" in answer.out
    (copy.package / "tensor.py").write_text("edited")
    answer = gpucheck("bisect", "run", "--patches", "series")
    assert answer.code == 2 and "is no longer what run tested" in answer.message


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_repository_whose_ends_are_equal(gpucheck: Command, here: Path, library: str, takes: list[Any]) -> None:
    shutil.copytree(library.removeprefix("path:"), here / "checkout")
    identity = ["-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", "checkout", *command], check=True)
    subprocess.run(["git", "-C", "checkout", *identity, "commit", "-qm", "two", "--allow-empty"], check=True)
    answer = gpucheck("bisect", "--repo", "checkout", "--good", "HEAD~1", *GIVEN)
    assert answer.code == 2 and "nothing changes between the ends" in answer.message
    assert not (here / "runs").exists()


def test_a_case_that_needs_no_library_has_none_looked_up(
    gpucheck: Command, here: Path, patches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "own.toml").write_text('[[cases]]\ncheck = "softmax"\n')
    case = gpucheck("run", "own.toml", "--device", "cpu", "--dry-run").out.splitlines()[0]
    own = ["--scenario", "own.toml", "--case", case, "--device", "cpu"]
    monkeypatch.setattr("gpucheck.library.library_option.resolve", lambda _: pytest.fail("looked up"))
    answer = gpucheck("bisect", "--patches", "series", *own)
    assert answer.code == 2 and answer.message == f"no case of {case} needs a library that patches could change"

    def candidates(self: Packages) -> list[Candidate]:
        raise UsageError(f"runs with the library {self.library!r}")

    monkeypatch.setattr(Packages, "candidates", candidates)
    answer = gpucheck("bisect", "--package", "triton", "--from", "1", "--to", "2", *own)
    assert answer.message == "runs with the library ''"
