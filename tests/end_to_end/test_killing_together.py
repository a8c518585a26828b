"""A process of one rank, killed or stopped at a random moment while ranks run cases together: nobody else is blamed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gpucheck.host.processes import parent_of, state_of
from gpucheck.launch.scratch import MEMORY, PREFIX
from gpucheck.tools.selftest.injection import write_scenario
from tests.end_to_end import test_killing
from tests.end_to_end.conftest import Lab, Running, environment, free_ports
from tests.end_to_end.test_killing import (
    FIND,
    PERHAPS,
    PROMPTLY,
    SEED,
    SIGNALS,
    after,
    finish,
    settle,
    subprocess_report,
)
from tests.processes import naming, wait_until

RANKS = 3
LATEST = 8.0  # s after its start that a run is hit
TURNS = 20
AGENT_TURNS = 10
NODE_TURNS = 5  # each takes as long as it takes to be sure that a node is gone
OPERATIONS = ["all_reduce", "all_to_all", "all_gather", "broadcast", "send_recv", "reduce_scatter"]
CASES = [
    {"check": "collectives", "operation": OPERATIONS, "n": [100, 70_000]},
    {"check": "collectives", "operation": OPERATIONS[:3], "groups": "several", "form": "async", "repeat": 20},
]


@pytest.mark.parametrize(("victim", "number"), [("child", signal.SIGKILL), ("supervisor", signal.SIGSTOP)])
def test_once(lab: Lab, victim: str, number: signal.Signals) -> None:
    strike(lab, victim, number, turn=0)


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(1, AGENT_TURNS + 1))
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_store_goes_with_the_agent_that_holds_it(lab: Lab, number: signal.Signals, turn: int) -> None:
    """Without torchrun's agent no rank finds another one: the run ends, and no rank is to blame."""
    dice = random.Random(f"{SEED} together torchrun {number} {turn}")
    moment = dice.uniform(2.0, LATEST)
    running = begun(lab)
    told = f"seed {SEED}, torchrun, {number.name}, turn {turn}, {moment:.2f} s"
    try:
        hit = after(moment, running, "torchrun", number, dice)
        code, text = finish(running)
    finally:
        running.process.kill()
        running.process.wait()
    nothing_is_left(running.process.pid, running.folder)
    nobody_is_blamed(json.loads(subprocess_report(running.folder)), code, hit.struck, f"{told}\n{text}")


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(1, NODE_TURNS + 1))
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("struck", [0, 1])
def test_a_whole_node_of_two_is_lost(lab: Lab, struck: int, number: signal.Signals, turn: int) -> None:
    """All processes of a node at once, as where a machine goes down or its network does: the other node ends.

    A node that never comes is waited for as long as the run may take; in all turns but the first ranks are at work.
    """
    dice = random.Random(f"{SEED} node {struck} {number} {turn}")
    moment = dice.uniform(0.0, LATEST)
    nodes, folders = two_nodes(lab)
    told = f"seed {SEED}, node {struck}, {number.name}, turn {turn}, {moment:.2f} s"
    other = nodes[1 - struck]
    try:
        if turn > 1:
            wait_until(lambda: bool(records(folders[struck])) or nodes[struck].poll() is not None)
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and nodes[struck].poll() is None:
            time.sleep(0.01)
        hit = nodes[struck].poll() is None
        while pids := [pid for pid in naming(folders[struck]) if state_of(pid) not in ("T", "Z", "gone")]:
            for pid in pids:  # again, for what these have started meanwhile
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        text, _ = other.communicate(timeout=2 * PROMPTLY)
        if number == signal.SIGSTOP:
            for pid in naming(folders[struck]):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            nodes[struck].communicate(timeout=2 * PROMPTLY)
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    nothing_is_left(other.pid, folders[1 - struck])
    wait_until(lambda: not naming(folders[struck]))  # what it left in memory the next run on that machine removes
    if struck == 1 or number == signal.SIGSTOP:  # else nobody is left to tell
        code = nodes[0].returncode
        nobody_is_blamed(json.loads(subprocess_report(folders[0])), code, hit, f"{told}\n{text}")


def two_nodes(lab: Lab) -> tuple[list[subprocess.Popen[str]], list[Path]]:
    """A run on two nodes of two ranks, which run the cases together; with the run folder of each node."""
    folder = lab.new_folder()
    write_scenario(folder / "s.toml", CASES, case_timeout=5, experiments=0, timeout=120)
    folders = [folder / f"node{number}" for number in range(2)]
    command = [sys.executable, "-m", "gpucheck", "run", str(folder / "s.toml"), "--device", "cpu", "--nproc", "2"]
    command += ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{free_ports(2)}"]
    nodes = [
        subprocess.Popen(
            [*command, "--node-rank", str(number), "--out", str(out)],
            env=environment(None),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, out in enumerate(folders)
    ]
    return nodes, folders


def nobody_is_blamed(report: dict[str, Any], code: int, struck: bool, told: str) -> None:
    """Whether what was lost leaves the verdict open, and fails no rank."""
    wrong = [result for result in report["results"] if result["outcome"] != "pass"]
    assert {result["outcome"] for result in wrong} <= {"lost", "harness"}, told
    assert not [finding for finding in report["findings"] if finding["fails"]], told
    assert (report["verdict"], code) in ((("INCONCLUSIVE", 3),) if struck and wrong else PERHAPS), told


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
    running = begun(lab)
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
    nothing_is_left(running.process.pid, running.folder)
    report = json.loads(subprocess_report(running.folder))
    known = supervisors(running.folder)
    unseen = {*range(RANKS)} - {*known.values()}  # hit before they had written anything
    hit_ranks = {rank for pid in struck for rank in ([known[pid]] if pid in known else unseen)}
    judge(report, hit_ranks, victim, f"{told}\n{text}")


def nothing_is_left(command: int, folder: Path) -> None:
    """Waits for the last process of a run, and looks for what its ranks shared while they worked."""
    wait_until(lambda: not naming(folder))
    assert not [*MEMORY.glob(f"{PREFIX}{command}-*"), *folder.glob("scratch-*")]


def begun(lab: Lab) -> Running:
    folder = lab.new_folder()
    write_scenario(folder / "s.toml", CASES, case_timeout=5, experiments=0, timeout=300)
    return lab.start(library=None, scenario=folder / "s.toml", nproc=RANKS)


def records(folder: Path) -> list[Path]:
    """The files of its ranks that hold something."""
    return [path for path in (folder / "records").glob("*.jsonl") if path.stat().st_size]


def supervisors(folder: Path) -> dict[int, int]:
    """The rank of each supervisor, by its process."""
    lines = [json.loads(path.read_text().splitlines()[0]) for path in records(folder)]
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
