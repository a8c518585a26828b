from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpucheck.host.processes import children_of
from gpucheck.launch import torchrun
from gpucheck.launch.early_torchrun import LOADED, EarlyTorchrun, loading_environment
from gpucheck.launch.gpus import Found
from gpucheck.model.errors import InfrastructureError
from gpucheck.model.record import Outcome
from tests.cli.conftest import Command, FakeRanks

SCENARIO = '[[cases]]\ncheck = "topk"\nplacement = ["pinned", "visible"]\n'


@pytest.fixture
def scenario(here: Path) -> str:
    (here / "mine.toml").write_text(SCENARIO)
    return "mine.toml"


@pytest.fixture
def run(gpucheck: Command, ranks: FakeRanks, scenario: str, library: str) -> Command:
    """Runs the scenario on stand-in ranks, with a stand-in library."""
    return lambda *options: gpucheck("run", scenario, "--library", library, *options)


@pytest.fixture
def untouched(here: Path, scenario: str) -> Any:
    """Fails the test if the command made or removed a file."""
    (here / "occupied").mkdir()
    (here / "occupied" / "old").write_text("")
    (here / "file").write_text("")
    (here / "broken.toml").write_text('title = "x"\n[[cases\n')
    (here / "empty.toml").write_text("")
    (here / "folder.toml").mkdir()
    before = sorted(here.rglob("*"))
    yield
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nope"], 2, "unknown scenario 'nope'; built in: .*smoke"),
        (["gone.toml"], 2, "gone.toml does not exist"),
        (["folder.toml"], 2, "folder.toml is a folder"),
        (["broken.toml"], 2, r"broken.toml: not valid TOML: .*line 2"),
        (["empty.toml"], 5, "scenario empty has no case; nothing to run"),
        (["mine.toml", "--checks", "topq"], 2, "--checks: unknown check 'topq'; known: .*topk"),
        (["mine.toml", "--checks", "topk,,mo"], 2, "unknown check 'mo'"),
        (["mine.toml", "--checks", ","], 2, "--checks names no check"),
        (["mine.toml", "--checks", "moe"], 5, "no case of moe; nothing to run"),
        (["mine.toml", "--case", "topk/bf16/m16-e8-top4/exac"], 2, "close: topk/bf16/m16-e8-top4/exact"),
        (["mine.toml", "--case", "nothing"], 2, "no case 'nothing'"),
        (["mine.toml", "--placement", "nowhere"], 2, "--placement is 'nowhere', expected one of pinned, visible"),
        (["mine.toml", "--device", "tpu"], 2, "--device is 'tpu', expected auto, cuda or cpu"),
        (["mine.toml", "--device", "cuda"], 3, "--device cuda: no GPU is visible"),
        (["mine.toml", "--library", "nonsense"], 2, "--library 'nonsense' is not understood"),
        (["mine.toml", "--library", "path:gone"], 2, "there is no such folder"),
        (["mine.toml", "--engine", "path:gone"], 2, "there is no such folder"),
        (["mine.toml", "--engine", "vllm==0.33.0"], 2, "--engine names vllm, and no case chosen of scenario mine"),
        (["mine.toml", "--library", "path:occupied"], 2, "no genuine copy of triton_kernels there"),
        (["mine.toml", "--timeout", "0"], 2, "--timeout is 0, expected seconds above 0"),
        (["mine.toml", "--timeout", "nan"], 2, "--timeout is nan"),
        (["mine.toml", "--timeout", "inf"], 2, "--timeout is inf"),
        (["mine.toml", "--case-timeout", "0"], 2, "--case-timeout is 0, expected seconds above 0"),
        (["mine.toml", "--repeat", "0"], 2, "--repeat is 0, expected 1 to 10000"),
        (["mine.toml", "--repeat", "10001"], 2, "--repeat is 10001"),
        (["mine.toml", "--isolate", "world"], 2, "--isolate is 'world', expected one of rank, case"),
        (["mine.toml", "--duration", "10 minutes"], 2, "--duration is '10 minutes', expected a time like 90s"),
        (["mine.toml", "--duration", "0m"], 2, "--duration is '0m'"),
        (["mine.toml", "--duration", "-5"], 2, "--duration is '-5'"),
        (["mine.toml", "--duration", "200h"], 2, "--duration is '200h', .* at most 168h"),
        (["mine.toml", "--duration", "2m", "--timeout", "60"], 2, "--timeout 60 ends the run before --duration 2m"),
        (["mine.toml", "--out", "file"], 2, "file is no folder"),
        (["mine.toml", "--out", "file/below"], 2, "file is no folder"),
        (["mine.toml", "--out", "occupied"], 2, "--out occupied is not empty"),
        (["mine.toml", "--json", "occupied"], 2, "--json occupied is a folder"),
        (["mine.toml", "--json", "."], 2, "--json . is a folder"),
        (
            ["mine.toml", "--json", "gone/report.json"],
            2,
            "--json gone/report.json cannot be written: there is no folder",
        ),
        (["mine.toml", "--json", "file/report.json"], 2, "there is no folder"),
        (
            ["mine.toml", "--write", "r.html", "--write", "r.pdf"],
            2,
            r"--write r.pdf: .* known: .json, .xml, .md, .prom",
        ),
        (["mine.toml", "--write", "occupied/"], 2, "--write occupied/: the suffix chooses the format"),
        (["mine.toml", "--write", "folder.toml/../gone/r.md"], 2, "there is no folder"),
        (["mine.toml", "--nnodes", "2"], 2, "--rdzv-endpoint HOST:PORT"),
        (["mine.toml", "--nnodes", "2", "--rdzv-endpoint", "head"], 2, "--rdzv-endpoint head is not HOST:PORT"),
        (["mine.toml", "--node-rank", "1"], 2, "--node-rank 1"),
    ],
)
def test_errors_are_one_message_and_leave_nothing_behind(
    gpucheck: Command, ranks: FakeRanks, untouched: None, arguments: list[str], code: int, words: str
) -> None:
    answer = gpucheck("run", *arguments)
    assert (answer.code, answer.out) == (code, "") and re.search(words, answer.message)
    assert not ranks.plans


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--colour"], "No such option: --colour"),
        (["--seed", "x"], "--seed"),
        (["--seed", "-1"], "--seed"),
        (["--nproc", "0"], "--nproc"),
        (["--timeout", "soon"], "--timeout"),
        (["a", "b"], "unexpected extra argument"),
    ],
)
def test_options_that_cannot_be_read(
    gpucheck: Command, ranks: FakeRanks, untouched: None, arguments: list[str], words: str
) -> None:
    answer = gpucheck("run", *arguments)
    assert answer.code == 2 and words in answer.err and "Traceback" not in answer.err and not answer.out


def test_more_ranks_than_gpus(
    gpucheck: Command, ranks: FakeRanks, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpucheck.launch.gpus.find", lambda: Found(("NVIDIA H200",) * 2))
    answer = gpucheck("run", "mine.toml", "--nproc", "3")
    assert answer.code == 3 and "--nproc 3 asks for more ranks than the 2 GPU(s)" in answer.message
    assert "use --nproc 2" in answer.message and not ranks.plans


def test_a_python_without_torch(
    gpucheck: Command, ranks: FakeRanks, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpucheck.host.software.missing_packages", lambda: ["torch", "triton"])
    answer = gpucheck("run", "mine.toml")
    assert answer.code == 3 and "has no torch and no triton" in answer.message


def test_a_library_that_cannot_be_fetched(
    gpucheck: Command, ranks: FakeRanks, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise InfrastructureError("no network")

    monkeypatch.setattr("gpucheck.library.library_option.resolve", refuse)
    answer = gpucheck("run", "mine.toml", "--out", "new/run")
    assert (answer.code, answer.message) == (3, "no network")


@pytest.mark.parametrize("option", [("--out", "locked/run"), ("--out", "locked"), ("--json", "locked/r.json")])
def test_places_that_may_not_be_written(
    gpucheck: Command,
    ranks: FakeRanks,
    here: Path,
    scenario: str,
    option: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (here / "locked").mkdir()
    access = os.access

    def refuse(path: str | Path, mode: int) -> bool:
        """Root may write everywhere, so the refusal is played."""
        return access(path, mode) and not (Path(path).name == "locked" and mode & os.W_OK)

    monkeypatch.setattr(os, "access", refuse)
    answer = gpucheck("run", scenario, *option)
    assert answer.code == 2 and re.search("not writable|permission denied", answer.message)
    assert list((here / "locked").iterdir()) == [] and not ranks.plans


def test_a_folder_that_cannot_be_made_after_all(
    gpucheck: Command, ranks: FakeRanks, untouched: None, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    answer = gpucheck("run", "mine.toml", "--library", library, "--out", "new")
    assert answer.code == 2 and "new cannot be made: Read-only file system; give another with --out" in answer.message


@pytest.mark.parametrize(
    ("outcome", "ending", "code", "verdict"),
    [
        (Outcome.PASS, {}, 0, "PASS"),
        (Outcome.MISMATCH, {}, 1, "FAIL"),
        (Outcome.VIOLATION, {}, 1, "FAIL"),
        (Outcome.ERROR, {}, 1, "FAIL"),
        (Outcome.CRASH, {"code": 1}, 1, "FAIL"),
        (Outcome.HANG, {}, 1, "FAIL"),
        (Outcome.LOST, {}, 3, "INCONCLUSIVE"),
        (Outcome.HARNESS, {}, 3, "INCONCLUSIVE"),
        (Outcome.INAPPLICABLE, {}, 3, "INCONCLUSIVE"),
        (Outcome.PASS, {"code": 1}, 3, "INCONCLUSIVE"),
        (Outcome.PASS, {"code": None, "timed_out": True}, 3, "INCONCLUSIVE"),
        (Outcome.PASS, {"code": None, "signal": 2}, 130, "INCONCLUSIVE"),
        (Outcome.LOST, {"code": None, "signal": 15}, 143, "INCONCLUSIVE"),
    ],
)
def test_exit_codes_follow_the_verdict(
    run: Command, gpucheck: Command, ranks: FakeRanks, outcome: Outcome, ending: dict[str, Any], code: int, verdict: str
) -> None:
    ranks.outcomes, ranks.ending = {(1, 1): outcome}, ending
    answer = run("--nproc", "2", "--out", "run")
    assert answer.code == code and f"\n{verdict}  " in "\n" + answer.out and answer.err == ""
    expected_code = code if code < 128 else 3
    assert gpucheck("report", "run").code == expected_code


def test_nothing_applicable_is_nothing_ran(run: Command, ranks: FakeRanks) -> None:
    ranks.outcomes = {(step, 0): Outcome.INAPPLICABLE for step in (0, 1)}
    answer = run()
    assert answer.code == 5 and "NOTHING RAN" in answer.out


def test_the_plan_holds_what_was_asked_for(
    gpucheck: Command, ranks: FakeRanks, scenario: str, library: str, here: Path
) -> None:
    options = ["--nproc", "3", "--seed", "7", "--timeout", "9", "--checks", "topk", "--library", library]
    assert gpucheck("run", scenario, *options, "--case", "topk/bf16/m16-e8-top4/exact").code == 0
    (plan,) = ranks.plans
    assert (plan.nproc, plan.nnodes, plan.seed, plan.timeout, plan.device) == (3, 1, 7, 9.0, "cpu")
    assert [(step.case.id, step.conditions.placement, step.case.seed) for step in plan.steps] == [
        ("topk/bf16/m16-e8-top4/exact", "cpu", 7)
    ]
    (folder,) = (here / "runs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["outcome.json", "plan.json", "records"]


def test_the_recorded_command_makes_the_same_plan_elsewhere(
    gpucheck: Command, ranks: FakeRanks, scenario: str, library: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "lib").symlink_to(Path(library.removeprefix("path:")))
    gpucheck("run", scenario, "--library", "path:lib", "--seed", "3", "--nproc", "2", "-q")
    (here / "away").mkdir()
    monkeypatch.chdir(here / "away")
    assert ranks.plans[0].command[0] == "gpucheck"
    assert gpucheck(*ranks.plans[0].command[1:], "--case", ranks.plans[0].steps[1].case.id).code == 0
    first, again = ranks.plans
    assert again.steps == first.steps[1:] and again.library == first.library and again.command == first.command
    assert (again.nproc, again.device, again.seed) == (2, "cpu", 3)


def test_a_placement_for_all_cases_is_part_of_the_recorded_command(run: Command, ranks: FakeRanks) -> None:
    assert run("--placement", "peer", "-q").code == 0
    (plan,) = ranks.plans
    assert {(step.conditions.placement, step.inapplicable) for step in plan.steps} == {
        ("peer", "placement peer needs GPUs")
    }
    assert plan.command[-2:] == ["--placement", "peer"]


def test_speed_is_measured_at_length_where_asked_for(
    run: Command, gpucheck: Command, ranks: FakeRanks, library: str, here: Path
) -> None:
    asked = run("--bench")
    assert asked.code == 0 and "speed is measured on GPUs only" in asked.out and "GB/s" not in asked.out
    (here / "long.toml").write_text("bench = true\nstraggler = 1.5\n" + SCENARIO)
    gpucheck("run", "long.toml", "--library", library)
    plain = run()
    assert plain.code == 0 and "speed is measured" not in plain.out
    assert [(plan.bench, plan.straggler) for plan in ranks.plans] == [(True, 1.25), (True, 1.5), (False, 1.25)]
    assert ["--bench" in plan.command for plan in ranks.plans] == [True, False, False]


PATCH = """\
--- a/triton_kernels/matmul.py
+++ b/triton_kernels/matmul.py
@@ -1,2 +1,3 @@
 class PrecisionConfig:
     b_mx_scale: object = None
+    guarded = True
"""


def test_a_patched_copy_is_tested_and_the_library_left_alone(
    run: Command, gpucheck: Command, ranks: FakeRanks, scenario: str, library: str, here: Path
) -> None:
    (here / "a.patch").write_text(PATCH)
    further = PATCH.replace("+    guarded", "     guarded = True\n+    also").replace("1,2 +1,3", "1,3 +1,4")
    (here / "b.patch").write_text(further)
    package = Path(library.removeprefix("path:")) / "triton_kernels"
    before = {path: path.read_text() for path in package.iterdir()}
    options = ["--library", library, "--patch", "a.patch", "--patch", "b.patch"]
    answer = gpucheck("run", scenario, *options, "--out", "r")
    assert answer.code == 0 and ") + a.patch + b.patch · " in answer.out
    (plan,) = ranks.plans
    copy = here / "r" / "library"
    assert plan.library["root"] == str(copy) and plan.library["package"] == str(copy / "triton_kernels")
    assert plan.library["patches"] == [str(here / "a.patch"), str(here / "b.patch")]
    assert (copy / "triton_kernels" / "matmul.py").read_text().endswith("    guarded = True\n    also = True\n")
    assert {path: path.read_text() for path in package.iterdir()} == before
    assert plan.command[-4:] == ["--patch", str(here / "a.patch"), "--patch", str(here / "b.patch")]
    assert run("--out", "s").code == 0
    assert ranks.plans[1].library["content"] != plan.library["content"]
    assert ranks.plans[1].library["patches"] == []


def test_a_patch_that_does_not_apply_leaves_nothing_behind(
    gpucheck: Command, ranks: FakeRanks, untouched: None, library: str
) -> None:
    for file, words in (("mine.toml", "holds no change in the unified format"), ("gone", "cannot be read as text")):
        answer = gpucheck("run", "mine.toml", "--library", library, "--patch", file, "--out", "new")
        assert answer.code == 2 and words in answer.message and not ranks.plans


def test_two_runs_in_a_second_have_folders_of_their_own(
    run: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "1121-120000")
    for _ in range(3):
        assert run("-q").code == 0
    assert len(list((here / "runs").iterdir())) == 3


def test_options_of_containment_are_in_the_plan_and_in_the_replay(run: Command, ranks: FakeRanks) -> None:
    options = ["--repeat", "7", "--case-timeout", "2.5", "--isolate", "case", "--debug"]
    assert run(*options, "-q").code == 0
    assert run("-q").code == 0
    plan, usual = ranks.plans
    assert {step.conditions.repeat for step in plan.steps} == {7}
    assert (plan.case_timeout, plan.isolate, plan.debug, plan.duration) == (2.5, "case", True, 0.0)
    assert plan.command[-7:] == options
    assert (usual.case_timeout, usual.isolate, usual.debug) == (120.0, "rank", False)
    assert not {"--repeat", "--isolate", "--debug", "--case-timeout"} & {*usual.command}


def test_repeating_keeps_what_is_expected_of_a_case(
    gpucheck: Command, ranks: FakeRanks, here: Path, library: str
) -> None:
    (here / "must.toml").write_text('[[cases]]\ncheck = "topk"\nexpect = "fail"\nrepeat = 3\n')
    ranks.outcomes = {(step, 0): Outcome.MISMATCH for step in range(2)}
    assert gpucheck("run", "must.toml", "--library", library, "--repeat", "5", "-q").code == 0
    assert {(step.conditions.repeat, step.expect is None) for step in ranks.plans[0].steps} == {(5, False)}


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0)])
def test_a_soak_has_its_time_beside_that_of_the_scenario(
    run: Command, ranks: FakeRanks, text: str, seconds: float
) -> None:
    assert run("--duration", text, "-q").code == 0
    (plan,) = ranks.plans
    assert (plan.duration, plan.timeout) == (seconds, 600.0 + seconds)
    assert "--duration" not in plan.command, "a replay runs its case once"


def test_of_two_runs_in_one_folder_one_is_refused(
    run: Command, ranks: FakeRanks, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw it empty; the other was quicker."""
    monkeypatch.setattr("gpucheck.cli.run.check_folder", lambda *_, **__: (here / "r" / "records").mkdir(parents=True))
    answer = run("--out", "r")
    assert answer.code == 2 and "was taken by another run just now; give another with --out" in answer.message
    assert not ranks.plans and [path.name for path in (here / "r").iterdir()] == ["records"]


def test_the_report_is_shown_though_the_end_of_the_run_cannot_be_written(
    run: Command, gpucheck: Command, ranks: FakeRanks, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpucheck.records import run_folder as folder

    write = folder.write_json

    def full(path: Path, content: Any) -> None:
        if path.name == "outcome.json":
            raise OSError(30, "Read-only file system", str(path))
        write(path, content)

    monkeypatch.setattr(folder, "write_json", full)
    ranks.outcomes = {(0, 0): Outcome.MISMATCH}
    answer = run("--out", "r")
    assert answer.code == 1 and "outcome.json cannot be written: Read-only file system" in answer.err
    assert "FAIL  1 finding" in answer.out and "XX" in answer.out
    ranks.outcomes = {}
    assert run("--out", "s").code == 3, "an end that nobody saw is no pass"


def test_quiet_prints_one_line(run: Command, here: Path) -> None:
    answer = run("--out", "r", "--quiet")
    assert (answer.out, answer.err) == (f"PASS  {here / 'r'}  no GPU was checked\n", "")


def test_an_empty_folder_may_be_used(run: Command, here: Path) -> None:
    (here / "r").mkdir()
    assert run("--out", "r").code == 0


def test_json_goes_to_stdout_alone(run: Command, ranks: FakeRanks) -> None:
    ranks.outcomes = {(0, 0): Outcome.MISMATCH}
    answer = run("--json", "-")
    item = json.loads(answer.out)
    assert answer.code == 1 and item["verdict"] == "FAIL" and "FAIL  1 finding" in answer.err


def test_json_may_lie_in_the_run_folder(run: Command, here: Path) -> None:
    answer = run("--out", "new/r", "--json", "new/r/report.json", "-q")
    assert answer.code == 0 and json.loads((here / "new" / "r" / "report.json").read_text())["verdict"] == "PASS"


def test_reports_are_written_in_the_format_of_their_suffix(run: Command, ranks: FakeRanks, here: Path) -> None:
    ranks.outcomes = {(0, 0): Outcome.MISMATCH}
    files = ["--write", "r.html", "--write", "new/r/report.xml", "--json", "r.json"]
    answer = run("--out", "new/r", *files)
    assert answer.code == 1 and "\nXX  topk" in answer.out and answer.err == ""
    assert "<h1>" in (here / "r.html").read_text() and 'failures="1"' in (here / "new/r/report.xml").read_text()
    assert json.loads((here / "r.json").read_text())["verdict"] == "FAIL"


def test_changed_software_is_told(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"torch": 1}, {"torch": 2}])
    monkeypatch.setattr("gpucheck.host.software.software", lambda _: next(answers))
    monkeypatch.setattr("gpucheck.report.blocks._headline", lambda _: [])
    answer = run()
    assert answer.code == 3 and "torch changed during the run: was 1, is 2" in answer.out


def test_dry_run_shows_what_would_run_and_makes_nothing(
    gpucheck: Command, ranks: FakeRanks, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = gpucheck("run", "mine.toml", "--dry-run", "--seed", "4")
    assert answer.code == 0 and answer.out.splitlines() == [
        "topk/bf16/m16-e8-top4/exact",
        "topk/bf16/m16-e8-top4/normal",
        "2 cases of mine on 1 rank(s), cpu, seed 4",
    ]
    monkeypatch.setattr("gpucheck.launch.gpus.find", lambda: Found(("H200",) * 8))
    lines = gpucheck("run", "mine.toml", "--dry-run", "--nnodes", "2", "--rdzv-endpoint", "h:1", "--out", "x").out
    assert "topk/bf16/m16-e8-top4/exact (visible)" in lines and "4 cases of mine on 16 rank(s), cuda, seed 0" in lines
    assert gpucheck("run", "mine.toml", "--dry-run", "--case", "x").code == 2
    assert gpucheck("run", "empty.toml", "--dry-run").code == 5
    assert not ranks.plans


def test_a_canary_comes_where_the_scenario_or_an_option_asks_for_it(
    gpucheck: Command, ranks: FakeRanks, untouched: None
) -> None:
    def canaries(*arguments: str) -> int:
        return gpucheck("run", *arguments, "--dry-run", "--device", "cpu").out.count("canary/")

    assert canaries("gate") == canaries("mine.toml", "--canary") == 1
    assert canaries("gate", "--no-canary") == canaries("mine.toml") == 0


def test_the_command_of_a_run_says_what_was_asked_of_the_canary(run: Command, ranks: FakeRanks) -> None:
    run("--canary")
    run()
    assert ["--canary" in plan.command for plan in ranks.plans] == [True, False]


def test_without_gpus_smoke_is_the_default_and_gate_with_them(
    gpucheck: Command, ranks: FakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert " of smoke on 1 rank(s), cpu" in gpucheck("run", "--dry-run").out
    monkeypatch.setattr("gpucheck.launch.gpus.find", lambda: Found(("H200",) * 8))
    assert " of gate on 8 rank(s), cuda" in gpucheck("run", "--dry-run").out
    assert " on 2 rank(s), cpu" in gpucheck("run", "--dry-run", "--device", "cpu", "--nproc", "2").out


NO_GPU = "no GPU was checked"


def test_a_run_on_the_cpu_says_in_every_report_that_no_gpu_was_checked(
    run: Command, gpucheck: Command, ranks: FakeRanks, scenario: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCHECK_TERMINATION_LOG", str(here / "log"))
    names = ["r.json", "r.xml", "r.md", "r.prom", "r.html"]
    write = [part for name in names for part in ("--write", name)]
    answer = run("--device", "cpu", *write)
    lines = answer.out.splitlines()
    assert lines[0].startswith("no GPU is checked by this run (--device cpu)") and lines[-1].startswith(NO_GPU)
    assert f"PASS  2 cases on 1 rank, {NO_GPU}" in lines and answer.code == 0
    assert json.loads((here / "r.json").read_text())["gpus_checked"] == 0
    assert 'gpucheck_gpus_checked{scenario="mine"} 0' in (here / "r.prom").read_text()
    assert all(NO_GPU in (here / name).read_text() for name in ("r.xml", "r.md", "r.prom", "r.html", "log"))
    assert NO_GPU in gpucheck("report", str(ranks.folders[-1])).out


def test_a_run_on_gpus_says_nothing_of_that(run: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucheck.launch.gpus.find", lambda: Found(("NVIDIA H200",) * 2))
    answer = run("--expect-gpus", "2", "--json", "r.json")
    assert answer.code == 0 and "no GPU" not in answer.out
    assert json.loads((here / "r.json").read_text())["gpus_checked"] == 2


def test_a_rank_that_worked_on_the_cpu_in_a_run_on_gpus_is_no_pass(
    run: Command, ranks: FakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpucheck.launch.gpus.find", lambda: Found(("NVIDIA H200",) * 2))
    ranks.on_cpu = {1}
    answer = run()
    assert answer.code == 3 and "a rank worked on the CPU" in answer.out and "rank 1" in answer.out


@pytest.mark.parametrize("name", ["gate", "quick", "gpt-oss-20b", "gpt-oss-120b", "device-context"])
def test_scenarios_for_gpus_never_run_on_the_cpu_unless_told(
    gpucheck: Command, ranks: FakeRanks, here: Path, name: str
) -> None:
    answer = gpucheck("run", name, "--nproc", "2")
    assert answer.code == 3 and f"scenario {name} is made for GPUs" in answer.message and not ranks.plans
    assert gpucheck("run", name, "--dry-run", "--device", "cpu").code == 0


def test_a_scenario_of_ones_own_may_be_made_for_gpus(gpucheck: Command, ranks: FakeRanks, here: Path) -> None:
    (here / "own.toml").write_text('device = "cuda"\n[[cases]]\ncheck = "topk"\n')
    answer = gpucheck("run", "own.toml")
    assert answer.code == 3 and "scenario own is made for GPUs" in answer.message and "--device cpu" in answer.message


def test_fewer_or_more_gpus_than_expected_start_nothing(
    gpucheck: Command, ranks: FakeRanks, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpucheck.launch.gpus.find", lambda: Found(("NVIDIA H200",) * 7))
    for expected in ("8", "6"):
        answer = gpucheck("run", "mine.toml", "--expect-gpus", expected)
        assert answer.code == 3 and f"--expect-gpus {expected}, 7 can be used" in answer.message
    assert not ranks.plans


@pytest.fixture
def loading(gpucheck: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[EarlyTorchrun]:
    """The processes that load torch, for which a stand-in takes forever, in the order of their start."""
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in" / "torch.py").write_text("import time\nwhile True: time.sleep(1)")
    started: list[EarlyTorchrun] = []

    def begin(nproc: int, run: Path, *, debug: bool) -> EarlyTorchrun:
        environment = loading_environment(nproc, debug=debug)
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "stand-in"), environment["PYTHONPATH"]])
        started.append(EarlyTorchrun(environment, run))
        return started[-1]

    monkeypatch.setattr("gpucheck.launch.early_torchrun.begin", begin)
    return started


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nope"], 2, "unknown scenario 'nope'"),
        (["mine.toml", "--device", "cuda"], 3, "--device cuda: no GPU is visible"),
        (["mine.toml", "--library", "path:gone"], 2, "there is no such folder"),
        (["mine.toml", "--checks", "moe"], 5, "no case of moe; nothing to run"),
        (["mine.toml", "--node-rank", "1"], 2, "--node-rank 1"),
    ],
)
def test_torch_is_loaded_while_the_command_plans_and_no_longer_than_that(
    gpucheck: Command,
    ranks: FakeRanks,
    scenario: str,
    loading: list[EarlyTorchrun],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    before = children_of(os.getpid())
    answer = gpucheck("run", *arguments)
    assert answer.code == code and words in answer.message
    assert len(loading) == 1 and children_of(os.getpid()) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_torch_is_no_longer_loaded_when_the_command_ends_early(
    gpucheck: Command,
    run: Command,
    loading: list[EarlyTorchrun],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    before, seen = children_of(os.getpid()), []

    def choose(*_: object, **__: object) -> None:
        seen.append(children_of(os.getpid()) - before)
        raise error

    monkeypatch.setattr("gpucheck.launch.gpus.choose", choose)
    answer = run()
    words = "interrupted" if isinstance(error, KeyboardInterrupt) else "No space left on device"
    assert (answer.code, answer.message) == (130 if words == "interrupted" else 3, words)
    assert [len(started) for started in seen] == [1], "it loads while the command looks for GPUs"
    assert children_of(os.getpid()) == before


TORCHRUN = """
import os, sys
config_from_args = None
def main(words):
    open(os.environ["TOLD"], "w").write(f"{os.getpid()} {words[-1]}")
    sys.exit(7)
"""


def test_what_loads_torch_from_the_start_becomes_torchrun(
    gpucheck: Command, here: Path, scenario: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a whole command: nothing in it changes the environment that torch is loaded with."""
    package = tmp_path / "stand-in" / "torch"
    (package / "distributed").mkdir(parents=True)
    for name, text in (("__init__", ""), ("cuda", "is_available = None"), ("distributed/run", TORCHRUN)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.delitem(sys.modules, LOADED, raising=False)  # this process is none that can fork it
    monkeypatch.setattr("gpucheck.host.software.missing_packages", list)
    started: list[int] = []

    def begin(nproc: int, run: Path, *, debug: bool) -> EarlyTorchrun:
        early = EarlyTorchrun(loading_environment(nproc, debug=debug), run)
        started.append(early._process.pid if early._process else 0)
        return early

    monkeypatch.setattr("gpucheck.launch.early_torchrun.begin", begin)
    answer = gpucheck("run", scenario, "--library", library, "--device", "cpu", "--out", "new", "--debug")
    assert answer.code == 3 and "INCONCLUSIVE" in answer.out, answer.err
    assert (tmp_path / "told").read_text() == f"{started[0]} {here / 'new'}"


def test_nothing_loads_torch_where_nothing_will_run(
    gpucheck: Command, ranks: FakeRanks, scenario: str, loading: list[EarlyTorchrun]
) -> None:
    for arguments, code in ((["--help"], 0), ([scenario, "--dry-run"], 0), ([scenario, "--seed", "x"], 2)):
        assert gpucheck("run", *arguments).code == code
    assert not loading


def test_the_software_is_looked_at_again_once_all_ranks_have_ended(
    run: Command, ranks: FakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time torchrun has ended that is done, and what shows the report is loaded."""
    looks: list[int] = []
    launched = torchrun.launch

    def launch(*arguments: Any, **named: Any) -> Any:
        before = len(looks)
        ending = launched(*arguments, **named)
        looks.append(-1)
        assert looks[before:] == [0, -1]
        return ending

    monkeypatch.setattr(torchrun, "launch", launch)
    monkeypatch.setattr("gpucheck.host.software.software", lambda _: looks.append(0) or {"torch": {"version": "1"}})
    assert run().code == 0 and looks == [0, 0, -1]
    ranks.ending = {"code": 1}
    ranks.outcomes = {(0, 0): Outcome.LOST}
    run("--out", "again")
    assert looks[3:] == [0, 0, -1]


def test_a_dry_run_loads_nothing_that_diagnoses(scenario: str) -> None:
    script = "import sys; from gpucheck.cli.app import main; sys.argv = ['gpucheck', 'run', sys.argv[1], '--dry-run']\n"
    script += "try: main()\nexcept SystemExit: pass\n"
    script += "print(*(name for name in sys.modules if name.startswith('gpucheck.diagnose.causes')), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script, scenario], capture_output=True, text=True, check=True)
    assert "topk" in done.stdout and done.stderr.split() == []
