"""What the report of a run makes of an answer, in the keys that clients read."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpucheck.tools.serve.evaluator import Ended
from gpucheck.tools.serve.run_answer import answer, command, replay
from gpucheck.tools.serve.tasks import Answer, Evaluation, State

PAIR = Evaluation("problem", "candidate", trials=2)
FACTS = {"hardware": "NVIDIA H200", "device": "cuda:0", "device_uuid": "GPU-1"}


def result(outcome: str = "pass", **more: Any) -> dict[str, Any]:
    plain = {"outcome": outcome, "message": "", "traceback": "", "mismatches": [], "timings": {}, "gpu": "GPU-1"}
    return {**plain, "rules": {}, "walls": ["no privileges"], **more}


def finding(cause: str, title: str = "", fails: bool = True) -> dict[str, Any]:
    return {"title": title or cause, "cause": cause, "fails": fails, "evidence": [], "fix": "", "cases": []}


def judged(
    folder: Path,
    verdict: str,
    results: list[dict[str, Any]],
    findings: list[dict[str, Any]] | None = None,
    *,
    evaluation: Evaluation = PAIR,
    ended: Ended | None = None,
) -> Answer:
    plan = {"device": "cuda", "environment": {"software": {"torch": {"version": "2.11"}}}}
    report = {"verdict": verdict, "results": results, "findings": findings or [], "notes": [], "plan": plan}
    (folder / "report.json").write_text(json.dumps(report))
    return answer(evaluation, ended or Ended(code=0), folder, FACTS)


def test_a_right_candidate_has_its_times_in_milliseconds_and_its_speed_up(tmp_path: Path) -> None:
    times = [{"candidate": 1e-3, "reference": 3e-3}, {"candidate": 2e-3, "reference": 3e-3}]
    got = judged(tmp_path, "PASS", [result(timings=each) for each in times])
    assert (got.status, got.compiled, got.correct, got.runtime, got.reference) == (200, True, True, 1.5, 3.0)
    assert got.runtime_stats == {"mean": 1.5, "std": 0.5, "min": 1.0, "max": 2.0, "num_trials": 2}
    assert got.speedup == 2.0 and got.metadata["excessive_speedup"] is False
    assert got.metadata["correctness_trials"] == "(2 / 2)" and got.metadata["walls"] == ["no privileges"]


def test_a_speed_up_that_nobody_believes_is_told(tmp_path: Path) -> None:
    got = judged(tmp_path, "PASS", [result(timings={"candidate": 1e-4, "reference": 3e-3})] * 2)
    assert got.metadata["excessive_speedup"] is True


def test_times_that_others_on_the_device_disturbed_are_not_told(tmp_path: Path) -> None:
    shared = Evaluation("problem", "candidate", trials=1, timed=False)
    got = judged(tmp_path, "PASS", [result(timings={"candidate": 1e-3, "reference": 3e-3})], evaluation=shared)
    assert got.correct and got.runtime is None and got.runtime_stats == {}


def test_a_wrong_candidate_has_no_time_and_says_how_far_off_it_is(tmp_path: Path) -> None:
    said = {"kernelbench": {"close": False, "max_difference": 0.25, "avg_difference": 0.125}}
    wrong = result("mismatch", mismatches=[{"output": "out"}], rules=said, timings={"candidate": 1e-3})
    good = result(rules={"kernelbench": {"close": True, "max_difference": 0.0, "avg_difference": 0.0}})
    got = judged(tmp_path, "FAIL", [wrong, good], [finding("kernel bug", "kernel bug: wrong scale")])
    assert (got.status, got.compiled, got.correct, got.runtime) == (200, True, False, None)
    assert got.metadata["max_difference"] == ["0.250000"] and got.metadata["avg_difference"] == ["0.125000"]
    assert got.metadata["correctness_issue"] == "kernel bug: wrong scale"
    assert got.metadata["kernelbench"]["correctness_trials"] == "(1 / 2)"
    assert "trial = [1]" in got.metadata["replay"]


@pytest.mark.parametrize(
    ("message", "key"),
    [
        ("UsageError: candidate.py cannot be loaded: RuntimeError: boom", "compilation_error"),
        ("ValueError: no", "runtime_error"),
    ],
)
def test_what_does_not_load_did_not_compile(tmp_path: Path, message: str, key: str) -> None:
    got = judged(tmp_path, "FAIL", [result("error", message=message)], [finding("the library or kernel raised")])
    assert got.status == 200 and got.metadata[key] == message and got.compiled is (key == "runtime_error")


@pytest.mark.parametrize(
    ("results", "findings", "status", "state"),
    [
        ([result("hang", message="no result within 5 s")], [finding("hang")], 504, State.TIMEOUT),
        ([result("error", message="CUDA out of memory")], [finding("out of memory")], 507, State.FAILED),
        ([result("crash", message="killed")], [finding("crash")], 200, State.COMPLETED),
    ],
)
def test_time_and_memory_have_the_status_that_clients_know(
    tmp_path: Path, results: list[dict[str, Any]], findings: list[dict[str, Any]], status: int, state: State
) -> None:
    got = judged(tmp_path, "FAIL", results, findings)
    assert (got.status, got.state, got.correct, got.lasting) == (status, state, False, True)


@pytest.mark.parametrize(("limit", "status"), [("seconds", 504), ("host_memory", 507), ("processes", 500)])
def test_a_limit_that_was_exceeded_fails_the_candidate_whatever_it_has_written(
    tmp_path: Path, limit: str, status: int
) -> None:
    ended = Ended(exceeded={"limit": limit, "detail": "it had too much"})
    got = judged(tmp_path, "PASS", [result()], ended=ended)
    assert (got.status, got.correct, got.metadata["verdict"]) == (status, False, "FAIL")


def test_no_verdict_is_no_answer_about_the_candidate(tmp_path: Path) -> None:
    for got in (
        judged(tmp_path, "INCONCLUSIVE", [result("lost")], [finding("lost")]),
        judged(tmp_path, "PASS", [result()], ended=Ended(stopped="the server is stopping")),
        judged(tmp_path, "PASS", [result(gpu="GPU-2")]),
    ):
        assert got.status == 500 and not got.correct and not got.lasting


def test_an_answer_that_did_not_come_from_own_kernels_is_told_as_a_decoy(tmp_path: Path) -> None:
    assert judged(tmp_path, "FAIL", [result("violation")], [finding("fallback")]).metadata["not_own_kernels"] is True
    assert judged(tmp_path, "PASS", [result()]).metadata["not_own_kernels"] is False


def test_nothing_tells_of_the_folder_of_the_server(tmp_path: Path) -> None:
    text = f'File "{tmp_path}/candidate.py", line 5'
    got = judged(tmp_path, "FAIL", [result("error", traceback=text, message="ValueError")], [finding("raised")])
    assert got.metadata["runtime_error"] == 'File "candidate.py", line 5'


def test_the_replay_command_writes_the_same_scenario_and_runs_the_same_pair(tmp_path: Path) -> None:
    made, *_, run = replay(PAIR, "cpu", [2]).partition(" && ")
    subprocess.run(["sh", "-c", made], cwd=tmp_path, check=True)
    written = (tmp_path / "trials.toml").read_text()
    first = command(PAIR, "cpu", tmp_path)
    assert (tmp_path / "trials.toml").read_text().replace("[1, 2]", "[2]") == written
    assert (tmp_path / "problem.py").read_text() == "problem" and first[:2] == ["run", "trials.toml"]
    assert set(shlex.split(run)[1:]) <= set(first)


def test_another_entry_point_is_known_under_the_usual_names(tmp_path: Path) -> None:
    command(Evaluation("class Net: ...", "class NetNew: ...", entry_point="Net"), "cpu", tmp_path)
    names: dict[str, Any] = {}
    for file in ("problem.py", "candidate.py"):
        exec((tmp_path / file).read_text(), names)
    assert names["Model"] is names["Net"] and names["ModelNew"] is names["NetNew"]
