"""What the command makes of what the processes of GPUs send: records, and why right tiles may not be enough."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpucheck.host.isolated import send
from gpucheck.model.record import Outcome, Record
from gpucheck.tools.screen import screening
from gpucheck.tools.screen.datapaths import DATAPATHS
from gpucheck.tools.screen.gpu_screen import GpuScreen, Known
from gpucheck.tools.screen.screening import SPECIAL, Gpu, Screening, planned
from gpucheck.tools.screen.tally import Tally

PATHS = {path.name: path for path in DATAPATHS}
NAMES = ("integer", "special functions", "tensor fp8 e4m3")
KNOWN = {name: Known(PATHS[name], None if not PATHS[name].exact else np.zeros(8, np.int64), []) for name in NAMES}
FACTS = {"event": "device", "name": "NVIDIA H200", "capability": [9, 0], "multiprocessors": 2}


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Gpu("GPU-1", "3B:00", "sm_90", 50, 1980)
    monkeypatch.setattr(screening, "gpus_of", lambda nproc: [found] * nproc)
    return planned("cuda", 1, 0, {}, ["gpucheck", "screen"], [*NAMES])


def recorded(plan: Any, tmp_path: Path, screen: GpuScreen, name: str, tiles: int = 0) -> Record | None:
    whole = Screening(tmp_path, plan, 1.0, tiles)
    whole._gpus = [Gpu("GPU-1", "3B:00", "sm_90", 50, 1980)]
    number = next(n for n, step in enumerate(plan.steps) if step.case["datapath"] == name)
    return whole._record(screen, name, number)


def screen(**changes: Any) -> GpuScreen:
    made = GpuScreen(0, KNOWN, {"device": "cuda", "idle": False}, dict)
    made.facts = FACTS
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def tally(name: str, digests: dict[int, int], known: Any = None) -> Tally:
    made = Tally(PATHS[name], np.zeros(8, np.int64) if known is None else np.array(known), [])
    made.digests.update(digests)
    made.launches, made.seconds = 1, 0.5
    return made


def test_a_launch_of_right_tiles_on_every_multiprocessor_passes(plan: Any, tmp_path: Path) -> None:
    record = recorded(plan, tmp_path, screen(tallies={"integer": tally("integer", {0: 3, 1: 3})}), "integer")
    assert record and record.outcome is Outcome.PASS and record.screened
    assert (record.screened.uuid, record.screened.bus, record.screened.architecture) == ("GPU-1", "3B:00", "sm_90")
    assert record.screened.tiles == [3 * PATHS["integer"].tiles] * 2 and record.screened.fewest > 0


def test_a_multiprocessor_that_nothing_ran_on_leaves_the_datapath_unjudged(plan: Any, tmp_path: Path) -> None:
    record = recorded(plan, tmp_path, screen(tallies={"integer": tally("integer", {0: 6})}), "integer")
    assert record and record.outcome is Outcome.HARNESS and "1 of 2 multiprocessors ran it" in record.message
    assert record.screened and record.screened.fewest == 0


def test_too_few_tiles_for_what_was_asked_leave_the_datapath_unjudged(plan: Any, tmp_path: Path) -> None:
    seen = screen(tallies={"integer": tally("integer", {0: 3, 1: 2})})
    enough = 2 * PATHS["integer"].tiles
    record = recorded(plan, tmp_path, seen, "integer", enough)
    assert record and record.outcome is Outcome.PASS
    record = recorded(plan, tmp_path, seen, "integer", enough + 1)
    assert record and record.outcome is Outcome.HARNESS
    assert f"{enough + 1:,} are needed for what --until asks" in record.message


def test_a_datapath_that_never_ran_has_no_record_or_says_what_ended_its_process(plan: Any, tmp_path: Path) -> None:
    assert recorded(plan, tmp_path, screen(), "integer") is None
    record = recorded(plan, tmp_path, screen(problem="was killed by SIGSEGV"), "integer")
    assert record and record.outcome is Outcome.LOST and "SIGSEGV" in record.message


def test_special_functions_are_held_against_the_table_of_the_architecture(plan: Any, tmp_path: Path) -> None:
    name = "special functions"
    as_told = screen(tallies={name: tally(name, {0: 3, 1: 3}, SPECIAL["sm_90"])})
    record = recorded(plan, tmp_path, as_told, name)
    assert record and record.outcome is Outcome.PASS
    assert record.screened and record.screened.source == "most multiprocessors and the table of sm_90"
    other = [*SPECIAL["sm_90"][:-1], 1]
    record = recorded(plan, tmp_path, screen(tallies={name: tally(name, {0: 3, 1: 3}, other)}), name)
    assert record and record.outcome is Outcome.HARNESS and "not with the table of sm_90" in record.message
    newer = screen(tallies={name: tally(name, {0: 3, 1: 3}, other)}, facts={**FACTS, "capability": [10, 0]})
    record = recorded(plan, tmp_path, newer, name)
    assert record and record.outcome is Outcome.PASS
    assert record.screened and record.screened.source == "most multiprocessors and no table of sm_100"


def test_gpus_of_one_kind_whose_functions_differ_are_told_apart_by_their_digests(plan: Any, tmp_path: Path) -> None:
    """``ranks disagree`` rests on digests, so both must have some, and different ones."""
    name = "special functions"
    seen = [
        recorded(plan, tmp_path, screen(tallies={name: tally(name, {0: 3, 1: 3}, known)}), name)
        for known in (SPECIAL["sm_90"], [*SPECIAL["sm_90"][:-1], 1])
    ]
    assert len({str(record and record.digests) for record in seen}) == 2 and all(r and r.digests for r in seen)


class Scripted:
    """A forkserver whose child has sent everything already."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        from multiprocessing import Pipe

        ours, theirs = Pipe()
        for message in messages:
            send(theirs, message)
        self._child = SimpleNamespace(connection=ours, pid=1)
        self._theirs = theirs

    def spawn(self, seconds: float) -> Any:
        return self._child

    def kill(self, child: Any) -> int:
        return -9

    reap = kill

    def last_words(self, code: int) -> str:
        return f"ended with {code}"


def test_a_kernel_of_ours_that_does_not_compile_is_not_the_gpus_fault(plan: Any, tmp_path: Path) -> None:
    failed = {"event": "failed", "path": "integer", "message": "CompilationError: no", "traceback": "..."}
    lacking = {"event": "lacking", "path": "tensor fp8 e4m3"}
    server: Any = Scripted(FACTS, failed, lacking, {"event": "ready"})
    seen = screen()
    seen.prepare(server)
    record = recorded(plan, tmp_path, seen, "integer")
    assert record and (record.outcome, record.message) == (Outcome.HARNESS, "CompilationError: no")
    record = recorded(plan, tmp_path, seen, "tensor fp8 e4m3")
    assert record and record.outcome is Outcome.INAPPLICABLE
    assert plan.steps[0].optional  # so that an older GPU can pass


def test_idle_where_processes_cannot_be_seen_judges_nothing(plan: Any, tmp_path: Path) -> None:
    server: Any = Scripted(FACTS, {"event": "blind"})
    seen = screen()
    seen.prepare(server)
    seen.run(server, 1.0, 0)
    for name in NAMES:
        record = recorded(plan, tmp_path, seen, name)
        assert record and record.outcome is Outcome.HARNESS and "hostPID" in record.message
