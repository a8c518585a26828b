"""Runs that keep things apart: cases in processes of their own, passes over the plan, folders of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Finished, Lab, file_system

KERNEL = "matmul_ogs_details/_matmul_ogs.py"
HOST = "matmul_ogs.py"
ENDLESS = (KERNEL, "    out *= gammas[:, None]\n", "    out *= gammas[:, None]\n    while N == 54:\n        pass\n")
SPOILT = """

import os as _os

_genuine, _seen = matmul_ogs, set()


def matmul_ogs(x, w, bias, **options):
    _seen.add(w.shape[-1])
    assert len(_seen) == 1, "another case was here before"
    assert _os.environ["CUDA_LAUNCH_BLOCKING"] == _os.environ["TRITON_DEBUG"] == "1"
    return _genuine(x, w, bias, **options)
"""
PASSES = 6
FLAKY = f"""

import itertools as _itertools
import os as _os
import pathlib as _pathlib

_pathlib.Path(_os.environ["GPUCHECK_SCRATCH"], "round{PASSES}.decision").write_text("no")  # in place of the clock
_genuine, _calls = matmul_ogs, _itertools.count()


def matmul_ogs(x, w, bias, **options):
    y = _genuine(x, w, bias, **options)
    if w.shape[-1] == 45 and _os.environ["RANK"] == "1" and next(_calls) in (6, 7):
        y += 1
    return y
"""


@pytest.fixture(scope="module")
def isolated(lab: Lab) -> Finished:
    """Cases that spoil their process for every other one, and a kernel that never ends."""
    options = ("--isolate", "case", "--debug", "--case-timeout", "8", "--experiments", "0")
    run: Finished = lab.finish(
        *options,
        library=lab.plant(ENDLESS, append=(HOST, SPOILT)),
        nproc=1,
        cases=("n41", "n45", "n46", "n54", "attention"),
    )
    return run


def test_every_case_has_a_process_of_its_own(isolated: Finished) -> None:
    assert isolated.code == 1, isolated.text
    outcomes = {result["case"]: result["outcome"] for result in isolated.report["results"]}
    assert len(outcomes) == 5 and {o for case, o in outcomes.items() if "n54" not in case} == {"pass"}
    (end,) = (line for line in isolated.records(0) if line["event"] == "end")
    assert end["children"] == 5
    results = isolated.results(0).values()
    assert len({result["pid"] for result in results}) == 5 and {result["before"] for result in results} == {0}


def test_a_kernel_that_never_ends_is_named(isolated: Finished) -> None:
    (finding,) = isolated.report["findings"]
    assert (finding["title"], finding["cause"]) == ("hang: in _matmul_ogs", "hang")
    said = "\n".join(finding["cases"][0]["lines"])
    assert re.search(r"no result within 8 s, at .*\.py:\d+ in \S+; the process was killed", said)
    assert re.search(r"in _matmul_ogs \(matmul_ogs\.py:\d+\)", said)


def test_what_is_unusual_about_the_run_is_in_its_report_and_plan(isolated: Finished) -> None:
    (headline,) = (line for line in isolated.text.splitlines() if " · seed 0 · " in line)
    assert "debug: launches waited for, device assertions compiled in · a process for each case" in headline
    plan = isolated.report["plan"]
    assert (plan["debug"], plan["isolate"], plan["case_timeout"]) == (True, "case", 8.0)
    replay = isolated.report["findings"][0]["cases"][0]["replay"]
    assert replay.startswith(f"gpucheck replay {isolated.folder} matmul/") and " --rank " in replay


def test_a_soak_tells_how_often_and_is_never_green_when_flaky(lab: Lab) -> None:
    run = lab.forked(
        *("--duration", "1h", "--experiments", "0"),
        library=lab.plant(append=(HOST, FLAKY)),
        cases=("m20-n41-", "m20-n45-"),
    )
    assert run.code == 1, run.text
    assert run.outcomes("n41") == ["pass", "pass"] and run.outcomes("n45") == ["pass", "mismatch"]
    flaky = next(result for result in run.report["results"] if "n45" in result["case"] and result["rank"] == 1)
    assert (flaky["failed_passes"], flaky["passes"]) == (1, PASSES)
    told = rf"rank 1: failed in 1 of {PASSES} passes; rate .*, 95% interval .*: intermittent"
    assert re.search(told, run.lines("n45"))
    passes = [int(words) for words in re.findall(r"rank \d: (\d+) passes, [01] of \d+ case-runs failed", run.text)]
    assert passes == [PASSES] * 2


def test_a_run_folder_that_is_read_only(lab: Lab, tmp_path: Path) -> None:
    with file_system(tmp_path / "locked", "ro") as folder:
        run = lab.finish(nproc=1, folder=folder / "run", cases=("n41",))
    assert run.code == 2 and f"{folder} is not writable; give another with --out" in run.text
    assert "Traceback" not in run.text


def test_two_runs_in_one_folder(lab: Lab, tmp_path: Path) -> None:
    both = [lab.start(nproc=1, folder=tmp_path / "run", cases=("m20-n41-",)) for _ in range(2)]
    first, second = sorted((running.finish() for running in both), key=lambda run: run.code)
    assert (first.code, second.code) == (0, 2), first.text + second.text
    assert "is not empty, expected a folder that is new" in second.text or "was taken by another" in second.text
    assert first.report["verdict"] == "PASS" and first.outcomes("n41") == ["pass"]
