"""A process of one rank, killed or stopped at a random moment while ranks run cases together: nobody else is blamed."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from gpucheck.host.processes import parent_of
from gpucheck.tools.selftest.injection import write_scenario
from tests.end_to_end import test_killing
from tests.end_to_end.conftest import Lab
from tests.end_to_end.test_killing import FIND, SEED, SIGNALS, after, finish, settle, subprocess_report
from tests.processes import naming, wait_until

RANKS = 3
LATEST = 8.0  # s after its start that a run is hit
TURNS = 20
OPERATIONS = ["all_reduce", "all_to_all", "all_gather", "broadcast", "send_recv", "reduce_scatter"]
CASES = [
    {"check": "collectives", "operation": OPERATIONS, "n": [100, 70_000]},
    {"check": "collectives", "operation": OPERATIONS[:3], "groups": "several", "form": "async", "repeat": 20},
]


@pytest.mark.parametrize(("victim", "number"), [("child", signal.SIGKILL), ("supervisor", signal.SIGSTOP)])
def test_once(lab: Lab, victim: str, number: signal.Signals) -> None:
    strike(lab, victim, number, turn=0)


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(1, TURNS + 1))
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("victim", ["child", "supervisor"])
def test_many_times(lab: Lab, victim: str, number: signal.Signals, turn: int) -> None:
    strike(lab, victim, number, turn)


def strike(lab: Lab, victim: str, number: signal.Signals, turn: int) -> None:
    """Starts a run, hits one rank's process at a random moment, and looks at whom the report blames."""
    dice = random.Random(f"{SEED} together {victim} {number} {turn}")
    moment = dice.uniform(2.0, LATEST)
    folder = lab.new_folder()
    write_scenario(folder / "s.toml", CASES, case_timeout=5, experiments=0, timeout=300)
    running = lab.start(library=None, scenario=folder / "s.toml", nproc=RANKS)
    told = f"seed {SEED}, {victim}, {number.name}, turn {turn}, {moment:.2f} s"
    owners: dict[int, int] = {}  # process -> supervisor, while it lives
    struck: list[int] = []  # supervisors of those that were hit

    def found(command: int) -> list[int]:
        pids = FIND[victim](command)
        for pid in pids:
            parent = parent_of(Path(f"/proc/{pid}"))
            owners[pid] = parent_of(Path(f"/proc/{parent}")) if victim == "child" else pid
        return pids

    def hit(pid: int, number: signal.Signals) -> None:
        struck.append(owners[pid])
        settle(pid, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_killing, "FIND", {victim: found})
        patch.setattr(test_killing, "settle", hit)
        try:
            after(moment, running, victim, number, dice)
            _, text = finish(running)
        finally:
            running.process.kill()
            running.process.wait()
    wait_until(lambda: not naming(running.folder))
    report = json.loads(subprocess_report(running.folder))
    known = supervisors(running.folder)
    unseen = {*range(RANKS)} - {*known.values()}  # hit before they had written anything
    hit_ranks = {rank for pid in struck for rank in ([known[pid]] if pid in known else unseen)}
    judge(report, hit_ranks, victim, f"{told}\n{text}")


def supervisors(folder: Path) -> dict[int, int]:
    """The rank of each supervisor, by its process."""
    lines = [json.loads(path.read_text().splitlines()[0]) for path in (folder / "records").glob("*.jsonl")]
    return {line["pid"]: line["rank"] for line in lines if line["event"] == "start"}


def judge(report: dict[str, Any], hit: set[int], victim: str, told: str) -> None:
    """Whether at most one rank is at fault, one that was hit, and all others are right or its victims."""
    wrong = [result for result in report["results"] if result["outcome"] != "pass"]
    guilty = {result["rank"] for result in wrong if result["victim_of"] is None}
    assert len(guilty) <= 1 and guilty <= hit, told
    for result in wrong:
        if result["victim_of"] is None:
            assert result["outcome"] in (("crash", "hang") if victim == "child" else ("lost",)), told
        else:
            assert result["outcome"] == "harness" and {result["victim_of"]} == guilty, (result, told)
    if victim == "child":
        assert len({result["case"] for result in wrong}) <= 1, told
    blamed = {rank for finding in report["findings"] if finding["fails"] for rank in finding["ranks"]}
    assert blamed <= guilty, told
    assert report["verdict"] == ("FAIL" if blamed else "INCONCLUSIVE" if wrong else "PASS"), told
