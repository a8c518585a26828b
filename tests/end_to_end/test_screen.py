"""Screens in real processes, with the interpreter's programs as multiprocessors: what the stored run says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpucheck.cli.screen import screen_gpus
from gpucheck.diagnose.conclude import conclude
from gpucheck.host.forkserver import Forkserver
from gpucheck.model.record import Outcome, Verdict
from gpucheck.records.run_folder import Run, read_run
from gpucheck.report import blocks
from gpucheck.report.formats import render
from gpucheck.report.formats.json_schema import report_schema
from gpucheck.tools.screen.datapaths import DATAPATHS

pytest.importorskip("triton")

COMMAND = ["gpucheck", "screen", "--device", "cpu"]


def screened(folder: Path, ranks: int = 1, seconds: float = 0.2, **options: Any) -> Run:
    folder.mkdir()
    assert screen_gpus(folder, "cpu", ranks, 0, seconds, COMMAND, **options) == 0
    return read_run(folder)


def test_a_clean_screen_passes_and_says_what_that_is_worth(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["screen", "--device", "cpu", "--seconds", "0.2", "--out", str(folder), "--json", str(tmp_path / "j")]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "gpucheck", *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "PASS  16 cases on 1 rank, no GPU was checked" in done.stdout
    item = json.loads((tmp_path / "j").read_text())
    jsonschema.validate(item, report_schema())
    assert [row["datapath"] for row in item["screen"]["rows"]] == [path.name for path in DATAPATHS]
    for row in item["screen"]["rows"]:
        assert (row["covered"], row["multiprocessors"]) == (4, 4)
        assert 0 < row["fewest"] == row["most"]
        assert 1 - (1 - row["seen"]) ** row["fewest"] == pytest.approx(0.99)
    assert sum(row["share"] for row in item["screen"]["rows"]) == pytest.approx(1)
    (statement,) = item["screen"]["statements"]
    fewest = min(row["fewest"] for row in item["screen"]["rows"])
    assert f"at least {fewest:,} tiles of each datapath" in statement and "with 99%" in statement
    assert statement in done.stdout
    page = render(blocks.build(read_run(folder), conclude(read_run(folder))), ".html")
    assert 'class="power"' in page and "1 - (1 - p)^N" in page


def test_a_faulty_multiprocessor_is_named_on_its_gpu_alone_and_seen_again_in_fresh_processes(tmp_path: Path) -> None:
    plant = {"rank": 1, "path": "integer", "sm": 2, "bits": 0x80, "chance": 0.3}
    run = screened(tmp_path / "run", 2, names=["integer", "L2"], plants=[plant])
    conclusion = conclude(run)
    (finding,) = conclusion.findings
    assert conclusion.verdict is Verdict.FAIL
    assert finding.title == "faulty multiprocessor: multiprocessor 2 of rank 1"
    assert (finding.ranks, finding.rows) == ([1], ["integer"])
    assert "0x80" in finding.cases[0].lines[0]
    assert finding.evidence == ["integer: wrong on the same multiprocessor in 3 of 3 fresh processes"]
    others = [record.outcome for (_, rank), record in run.records.items() if rank == 0]
    assert others == [Outcome.PASS, Outcome.PASS]


def test_the_datapath_at_which_the_process_of_a_gpu_died_crashed_and_what_it_did_not_come_to_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []
    spawn = Forkserver.spawn

    def noted(server: Forkserver, seconds: float | None = None) -> Any:
        child = spawn(server, seconds)
        pids.append(child.pid)
        return child

    def killing(text: str) -> None:
        if text.startswith("screening"):
            os.kill(pids[0], signal.SIGKILL)

    monkeypatch.setattr(Forkserver, "spawn", noted)
    run = screened(tmp_path / "run", names=["integer", "L2"], progress=killing)
    outcomes = {record.outcome for record in run.records.values()}
    assert Outcome.PASS not in outcomes and outcomes <= {Outcome.CRASH, Outcome.LOST}
    assert all("was killed by SIGKILL" in record.message for record in run.records.values())
    assert conclude(run).verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)


SCENARIO = """
title = "a screen behind the ranks"
screen = 0.1
[[cases]]
check = "softmax"
data = "exact"
"""


def test_a_scenario_may_carry_a_screen_whose_datapaths_count_as_its_cases(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SCENARIO)
    folder = tmp_path / "run"
    arguments = ["run", str(tmp_path / "s.toml"), "--device", "cpu", "--out", str(folder), "--quiet"]
    done = subprocess.run([sys.executable, "-m", "gpucheck", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = blocks.build(run := read_run(folder), conclude(run))
    assert [name for name, *_ in report.rows] == ["softmax", *(path.name for path in DATAPATHS)]
    assert len(report.screen.rows) == len(DATAPATHS) and len(report.screen.statements) == 1

    begun = (folder / "screen" / "plan.json").read_text()  # one that never began proves nothing
    (folder / "screen" / "plan.json").unlink()
    without = conclude(read_run(folder))
    assert without.verdict is Verdict.INCONCLUSIVE
    assert [finding.title for finding in without.findings] == ["the GPUs were not screened"]

    (folder / "screen" / "plan.json").write_text(begun)  # one that broke off has lost what it did not come to
    lines = (folder / "screen" / "records" / "rank-00000.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"event":"result"' not in line or "tensor-fp16" in line]
    (folder / "screen" / "records" / "rank-00000.jsonl").write_text("".join(kept))
    broken = conclude(read_run(folder))
    assert broken.verdict is Verdict.INCONCLUSIVE


def test_built_in_scenarios_carry_no_screen_until_its_cost_is_known() -> None:
    from gpucheck.plan.scenario import builtin, load

    assert not [name for name, path in builtin().items() if load(path).screen]
