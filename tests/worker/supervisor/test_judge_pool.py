"""Processes that judge: as threads would, and a dead one loses nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck import checks
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Outcome, Record
from gpucheck.worker.protocol import Request
from gpucheck.worker.supervisor import judge_pool
from gpucheck.worker.supervisor.attempt import Attempt
from gpucheck.worker.supervisor.case_files import CaseFiles
from gpucheck.worker.supervisor.judge_pool import JudgePool, JudgeProcesses
from gpucheck.worker.supervisor.supervisor import judge_processes
from tests.conftest import Synthetic
from tests.worker.supervisor.test_supervisor import right


@pytest.fixture
def plan(synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPUCHECK_SCRATCH", str(tmp_path / "scratch"))
    case = checks.load("matmul").spec.case({"m": 4, "n": 8, "k": 32}, "exact", 0)
    return replace(synthetic.plan(device="cpu"), steps=(Step(case, Conditions("cpu")),))


@pytest.fixture
def processes(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeProcesses]:
    monkeypatch.setattr(judge_pool, "THREADS", 1)  # torch has computed here, and its threads do not survive a fork
    made = JudgeProcesses(plan, 1)
    yield made
    made.close()


def answered(plan: Plan, files: CaseFiles, tmp_path: Path, **changes: Any) -> Attempt:
    """The attempt of a child that answered rightly."""
    step, outputs = plan.steps[0], str(tmp_path / "outputs")
    reply = right(Request(step.case, step.conditions, str(files.inputs("0", step.case)), (outputs,)))
    record = Record(0, step.case.id, 0, Outcome.HARNESS)
    return Attempt(step, "0", record, outputs, replace(reply, saved=["d"], **changes))


@pytest.mark.parametrize("dead", [False, True])
def test_the_record_is_the_same_whoever_makes_it(
    plan: Plan, processes: JudgeProcesses, tmp_path: Path, dead: bool
) -> None:
    files = CaseFiles.of(plan)
    if dead:
        os.kill(processes._pids[0], signal.SIGKILL)
    record = processes.finished(files, answered(plan, files, tmp_path))
    assert record.outcome is Outcome.PASS and record.digests and not (tmp_path / "outputs").exists()
    failed = processes.finished(files, answered(plan, files, tmp_path, guards=["behind y: 4 bytes"]))
    assert failed.outcome is Outcome.VIOLATION and failed.violations[0].detail == "behind y: 4 bytes"


def test_few_processors_or_memory_of_what_was_judged_before_leave_it_to_threads(plan: Plan) -> None:
    assert [judge_processes(plan, processors) for processors in (1, 2, 4, 16)] == [0, 0, 1, 4]
    assert judge_processes(replace(plan, duration=60.0), 16) == 0


def test_what_a_judge_raises_ends_the_rank_and_not_a_case_in_silence(plan: Plan, tmp_path: Path) -> None:
    def full(attempt: Attempt) -> None:
        raise OSError("No space left on device")

    attempt = answered(plan, CaseFiles.of(plan), tmp_path)
    with pytest.raises(OSError, match="No space"), JudgePool(1, 1, 1, 1 << 20, full) as pool:
        pool.submit(attempt)
        while True:
            pool.wait_for_room()
            pool.submit(attempt)
