"""``gpucheck compile`` in this process, with results that no compiler made."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gpucheck.tools.compile.combinations import Job
from gpucheck.tools.compile.outcome import Built, CaseBuilt, Kernel, Result
from gpucheck.tools.compile.tritons import Triton
from tests.cli.conftest import Command
from tests.tools.compile.conftest import make_kernel

FITS, FAILS = make_kernel(), make_kernel("k2", Built.FAILED)


class FakeBuild:
    """Stands in for compiling: every case of every job gives one kernel."""

    def __init__(self) -> None:
        self.kernel: Kernel | str | None = FITS  # a text: why nothing applies
        self.jobs: list[Job] = []

    def __call__(self, jobs: Sequence[Job], parallel: int) -> Iterator[Result]:
        self.jobs += jobs
        for job in reversed(jobs):  # they come in any order
            result = Result(job.combination)
            if isinstance(self.kernel, str):
                result.inapplicable = self.kernel
                yield result
                continue
            for case in job.cases:
                keys = (self.kernel.key,) if self.kernel else ()
                built = self.kernel.built if self.kernel else Built.NOT_REACHED
                result.cases[case.id] = CaseBuilt(case.id, built, "" if keys else "why", "", len(keys), keys)
            result.kernels = {self.kernel.key: self.kernel} if self.kernel else {}
            yield result


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBuild:
    """The machine has torch, an installed Triton 3.7.1 and a folder with any other that is asked for."""
    fake = FakeBuild()

    def resolve(text: str) -> Triton:
        version = {"installed": "3.7.1", "path:mine": "3.6.0"}.get(text, text)
        return Triton(version, None, tmp_path / text)

    monkeypatch.setattr("gpucheck.tools.compile.combinations.build", fake)
    monkeypatch.setattr("gpucheck.tools.compile.tritons.resolve", resolve)
    monkeypatch.setattr("gpucheck.host.software.missing_packages", list)
    return fake


def test_targets_tritons_and_libraries_are_combined(gpucheck: Command, built: FakeBuild, library: str) -> None:
    options = ("--target", "sm_90,gfx942", "--triton", "3.6.0,3.9.0", "--library", library)
    answer = gpucheck("compile", *options)
    assert answer.code == 0
    combinations = [str(job.combination) for job in built.jobs]
    assert len(set(combinations)) == 8 and sum(text.startswith("own, ") for text in combinations) == 4
    ours = next(job for job in built.jobs if job.library is None)
    theirs = next(job for job in built.jobs if job.library)
    own = {"attention", "softmax", "weighted_matmul", "selection_attention", "paged_attention"}
    assert {case.check for case in ours.cases} == own
    assert {case.check for case in theirs.cases} == {"matmul", "moe", "routing", "mxfp", "swiglu"}
    header, *rows = answer.out.splitlines()[3:8]
    assert header.split() == ["library", "triton", "sm_90", "gfx942"]
    assert [row.split()[-5] for row in rows] == ["3.9.0", "3.6.0"] * 2 and rows[-1].startswith("own")
    assert all(row.split()[-4:] == ["1", "ok", "1", "ok"] for row in rows)
    assert answer.out.splitlines()[-1] == "advice newest Triton that compiles everything: 3.9.0"


def test_the_usual_run_takes_four_targets_and_the_installed_triton(
    gpucheck: Command, built: FakeBuild, library: str
) -> None:
    assert gpucheck("compile", "--library", library).code == 0
    assert {job.target.name for job in built.jobs} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert {job.triton.version for job in built.jobs} == {"3.7.1"}


def test_checks_from_a_file_are_compiled_without_a_library(
    gpucheck: Command, built: FakeBuild, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("gpucheck.library.library_option.resolve", None)
    assert gpucheck("new", "check", "twice").code == 0
    built.kernel = FAILS
    answer = gpucheck("compile", "--check-file", "twice.py", "--target", "sm_90")
    assert answer.code == 1
    (job,) = built.jobs
    assert job.library is None and {case.check for case in job.cases} == {"twice"}
    assert [source.checks for source in job.sources if source.files[0].endswith("twice.py")] == [("twice",)]
    again = f"replay  gpucheck compile --check-file {here / 'twice.py'} --case twice/"
    assert again in answer.out


def test_our_own_kernels_need_no_library(gpucheck: Command, built: FakeBuild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucheck.library.library_option.resolve", None)
    assert gpucheck("compile", "--checks", "attention", "--target", "sm_90").code == 0
    assert [job.library for job in built.jobs] == [None]


@pytest.mark.parametrize(
    ("kernel", "code", "verdict"),
    [
        (FITS, 0, "PASS"),
        (FAILS, 1, "FAIL"),
        (None, 3, "INCONCLUSIVE"),
        ("needs another Triton", 5, "NOTHING RAN"),
    ],
)
def test_the_exit_code_follows_from_the_verdict(
    gpucheck: Command, built: FakeBuild, tmp_path: Path, kernel: Kernel | str | None, code: int, verdict: str
) -> None:
    built.kernel = kernel
    report = tmp_path / "report.json"
    answer = gpucheck("compile", "--checks", "attention", "--target", "sm_90", "--json", str(report))
    assert answer.code == code and answer.out.startswith(verdict)
    assert json.loads(report.read_text())["verdict"] == verdict


def test_a_report_is_written_in_the_formats_that_are_named(gpucheck: Command, built: FakeBuild, here: Path) -> None:
    built.kernel = FAILS
    options = ("--checks", "attention", "--target", "sm_90", "--write", "a.md", "--write", "a.json")
    assert gpucheck("compile", *options).code == 1
    assert (here / "a.md").read_text().startswith("## FAIL: 1 finding\n")
    assert json.loads((here / "a.json").read_text())["verdict"] == "FAIL"


def test_json_on_stdout_is_alone_there(gpucheck: Command, built: FakeBuild) -> None:
    answer = gpucheck("compile", "--checks", "attention", "--target", "sm_90", "--json", "-")
    assert json.loads(answer.out)["combinations"][0]["library"] == "own"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_command_ends_what_it_started(
    gpucheck: Command, built: FakeBuild, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    ended = []

    def build(jobs: Sequence[Job], parallel: int) -> Iterator[Result]:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
            yield from ()
        finally:
            ended.append(True)

    monkeypatch.setattr("gpucheck.tools.compile.combinations.build", build)
    before = signal.getsignal(signal.SIGTERM)
    assert gpucheck("compile", "--checks", "attention", "--target", "sm_90").code == code
    assert ended and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "sm_70"], "unknown target 'sm_70'; known: sm_80 (A100)"),
        (["--target", ","], "--target ',' names nothing"),
        (["--triton", ","], "--triton ',' names nothing"),
        (["--triton", "3.6.0,path:mine"], "--triton 3.6.0 and path:mine both say that they are 3.6.0"),
        (["--checks", ","], "--checks ',' names nothing"),
        (["--case", "swiglu/none"], "no case"),
        (["nowhere.toml"], "nowhere"),
        (["--json", "/nowhere/report.json"], "cannot be written"),
        (["--write", "report.html"], "--write report.html: the suffix chooses the format; known: .json, .md"),
    ],
)
def test_bad_options_are_refused_before_anything_is_built(
    gpucheck: Command, built: FakeBuild, options: list[str], message: str
) -> None:
    answer = gpucheck("compile", *options)
    assert answer.code == 2 and message in answer.message and not built.jobs


def test_a_python_without_torch_says_so(gpucheck: Command, built: FakeBuild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucheck.host.software.missing_packages", lambda: ["torch"])
    answer = gpucheck("compile")
    assert answer.code == 3 and "has no torch" in answer.message
