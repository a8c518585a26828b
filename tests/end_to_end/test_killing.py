"""Any process of a run, killed or stopped at a random moment: no orphan, no finished record lost, the right verdict."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpucheck.host.processes import children_of, state_of
from gpucheck.launch.torchrun import AGENT
from tests.end_to_end.conftest import Lab, Running
from tests.processes import naming, wait_until

SEED = os.environ["GPUCHECK_TEST_SEED"]  # see the head of pytest's output
VICTIMS = ("child", "supervisor", "torchrun", "command")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
ONCE = [*((victim, signal.SIGSTOP) for victim in VICTIMS), ("torchrun", signal.SIGKILL)]
"""What each run of the tests does at a random moment; test_command and test_planted kill the others at a given one."""
CASES = ("attention", "m20-n41-", "m20-n45-", "m20-n46-", "top2-gather/")
LATEST = 9.0  # s after its start that a run is hit
STOPPED = 3.0  # s after which a command that was stopped goes on
PROMPTLY = 300.0  # s; a fail-safe
TURNS = 20

Result = dict[str, Any]


@dataclass(frozen=True)
class Hit:
    """What a run was when it was hit."""

    struck: bool  # the victim was there
    results: list[Result]  # that had been written


def child(command: int) -> list[int]:
    return [pid for server in below(command, 4) for pid in children_of(server)]


def supervisor(command: int) -> list[int]:
    return below(command, 3)


def below(command: int, generations: int) -> list[int]:
    """Descendants of the command: torchrun, ranks, supervisors, forkservers, children."""
    found = {pid for pid in children_of(command) if AGENT.encode() in command_line(pid)}
    for _ in range(generations - 1):
        found = {pid for parent in found for pid in children_of(parent)}
    return sorted(found)


FIND: dict[str, Callable[[int], list[int]]] = {
    "child": child,
    "supervisor": supervisor,
    "torchrun": lambda command: below(command, 1),
    "command": lambda command: [command],
}


def command_line(pid: int) -> bytes:
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(("victim", "number"), ONCE)
def test_once(lab: Lab, victim: str, number: signal.Signals) -> None:
    strike(lab, victim, number, turn=0)


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("victim", VICTIMS)
def test_many_times(lab: Lab, victim: str, number: signal.Signals, turn: int) -> None:
    strike(lab, victim, number, turn)


def strike(lab: Lab, victim: str, number: signal.Signals, turn: int) -> None:
    """Starts a run, hits the victim at a random moment, and holds what is left against what had been written."""
    dice = random.Random(f"{SEED} {victim} {number} {turn}")
    moment = dice.uniform(0.0, LATEST)
    running = lab.start("--case-timeout", "4", "--experiments", "0", "--timeout", "300", cases=CASES)
    told = f"seed {SEED}, {victim}, {number.name}, turn {turn}, {moment:.2f} s"
    try:
        hit = after(moment, running, victim, number, dice)
        code, text = finish(running)
    finally:
        running.process.kill()
        running.process.wait()
    wait_until(lambda: not naming(running.folder))
    if not (running.folder / "plan.json").exists():
        assert victim == "command" and not hit.results, f"{told}\n{text}"
        return
    report = json.loads(subprocess_report(running.folder))
    kept = {(result["case"], result["rank"]): result for result in report["results"]}
    for result in hit.results:
        assert kept[(result["case"], result["rank"])]["outcome"] == result["outcome"], told
    judge(victim, number, hit, report, code, f"{told}\n{text}")


def after(seconds: float, running: Running, victim: str, number: signal.Signals, dice: random.Random) -> Hit:
    """Hits the victim then, or as soon as there is one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and running.process.poll() is None:
        time.sleep(0.01)
    struck = False
    while running.process.poll() is None and not struck:
        for pid in dice.sample(found := FIND[victim](running.process.pid), len(found)):
            if state_of(pid) not in ("Z", "gone"):
                os.kill(pid, number)
                struck = True
                settle(pid, number)
                break
    return Hit(struck, written(running.folder))


def settle(pid: int, number: signal.Signals) -> None:
    """Waits until a process that was told to stop has stopped, which may take a moment."""
    deadline = time.monotonic() + PROMPTLY
    while number == signal.SIGSTOP and state_of(pid) not in ("T", "Z", "gone") and time.monotonic() < deadline:
        time.sleep(0.001)


def finish(running: Running) -> tuple[int, str]:
    """Exit code and output of the command, which goes on where it was the one that was stopped."""
    if state_of(running.process.pid) == "T":
        time.sleep(STOPPED)
        running.process.send_signal(signal.SIGCONT)
    text, _ = running.process.communicate()
    return running.process.returncode, text


def written(folder: Path) -> list[Result]:
    """The results that are whole in the records."""
    found = []
    for path in (folder / "records").glob("*.jsonl"):
        content = path.read_bytes()
        lines = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
        found += [line for line in lines if line["event"] == "result"]
    return found


def judge(victim: str, number: signal.Signals, hit: Hit, report: dict[str, Any], code: int, told: str) -> None:
    """Whether the verdict is right for what happened, and says so."""
    outcomes = [result["outcome"] for result in report["results"]]
    others = {outcome for outcome in outcomes if outcome != "pass"}
    verdict = report["verdict"]
    if victim == "child":
        unready = "the process on this GPU was stopped by a signal" in told  # while it was set up
        expected = {"crash" if number == signal.SIGKILL or unready else "hang"}
        assert others <= expected and len([o for o in outcomes if o != "pass"]) <= 1, told
        assert (verdict, code) == (("FAIL", 1) if others else ("PASS", 0)), told
    elif victim == "supervisor":
        lost = {result["rank"] for result in report["results"] if result["outcome"] == "lost"}
        assert others <= {"lost"} and len(lost) <= 1, told
        assert (verdict, code) == (("INCONCLUSIVE", 3) if others else ("PASS", 0)), told
        assert not lost or "its supervisor was " in told, told
    elif victim == "torchrun":
        assert others <= {"lost"}, told
        assert (verdict, code) in ((("INCONCLUSIVE", 3),) if hit.struck and others else PERHAPS), told
        assert number != signal.SIGSTOP or not hit.results or not others, f"ranks go on without torchrun: {told}"
    elif number == signal.SIGKILL:
        assert others <= {"lost"} and verdict in ("INCONCLUSIVE", "PASS"), told
        assert verdict == "INCONCLUSIVE" or code in (0, -9), told
    else:
        assert (verdict, code) == ("PASS", 0), told


PERHAPS = (("INCONCLUSIVE", 3), ("PASS", 0))  # PASS only where it was hit when all had ended


def subprocess_report(folder: Path) -> str:
    """The report of a run folder, whatever became of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "gpucheck", "report", str(folder), "--json", "-"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    return done.stdout
