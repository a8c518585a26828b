"""Ranks together over NCCL: right ones pass; what one rank does wrong is named in the report, with rank and bytes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.collective_faults import FAULTS, GATHERED, REDUCED
from gpucheck.tools.selftest.fault import COLLECTIVE_CALLS, Edit, Expected, Fault
from gpucheck.tools.selftest.injection import Injector, Planted, write_scenario
from tests.end_to_end.conftest import environment
from tests.gpu.conftest import DEADLINE, NEEDS_TWO, Done

pytestmark = NEEDS_TWO

RANKS, GUILTY = 2, 1
NOT_WAITED = """    if each.sent.numel() == 1048583:
        distributed.all_reduce(each.received, _reduction(each), each.group, async_op=True)
        return []
{anchor}"""
PRODUCED_LATE = """    if each.sent.numel() == 1048589:
        data, side, here = each.sent.clone(), torch.cuda.Stream(), torch.cuda.current_stream()
        each.sent.zero_()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            each.sent.copy_(data)
        works = function(each.received, each.sent, each.group, async_op=each.asynchronous)
        here.wait_stream(side)
        return [works]
{anchor}"""
BEFORE = "    each.received.copy_(each.sent)\n"
DOES = {
    "hangs": (61, "while True: __import__('time').sleep(1)", Outcome.HANG, r"did not come to all_reduce number 1"),
    "dies": (62, "__import__('os').kill(__import__('os').getpid(), 9)", Outcome.CRASH, r"SIGKILL"),
    "raises": (63, "raise RuntimeError('no such buffer')", Outcome.ERROR, r"no such buffer"),
}
"""What the guilty rank does instead of its all_reduce; the number of elements tells the case."""


def stream_fault(name: str, operation: str, n: int, anchor: str, text: str, title: str) -> Fault:
    case = {"check": "collectives", "operation": operation, "dtype": "int32", "n": n}
    return Fault(name, name, Edit(COLLECTIVE_CALLS, anchor, text), case, Expected(Outcome.MISMATCH, title))


STREAMS = (
    stream_fault(
        "not waited for", "all_reduce", 1048583, REDUCED, NOT_WAITED, r"stale or early buffer: early.* rank 1"
    ),
    stream_fault(
        "produced late", "all_gather", 1048589, GATHERED, PRODUCED_LATE, r"chunk swapped or dropped: rank 1 to"
    ),
)


def stops(name: str) -> Fault:
    """A rank that does not get to its all_reduce."""
    n, does, outcome, _ = DOES[name]
    text = f"    if each.sent.numel() == {n}:\n        {does}\n{{anchor}}"
    case = {"check": "collectives", "operation": "all_reduce", "dtype": "int32", "n": n}
    return Fault(name, name, Edit(COLLECTIVE_CALLS, BEFORE, text), case, Expected(outcome, ""))


AT_ONCE = tuple(fault for fault in FAULTS if fault.name != "link-error")
(LINK,) = (fault for fault in FAULTS if fault.name == "link-error")  # which takes fresh processes to be told
PLANTED = (*AT_ONCE, *STREAMS, *map(stops, DOES))


@dataclass(frozen=True)
class Seen:
    """A run with every fault on the guilty rank."""

    code: int
    text: str
    report: Mapping[str, Any]

    def results(self, n: int) -> dict[int, Mapping[str, Any]]:
        return {item["rank"]: item for item in self.report["results"] if f"/n{n}/" in item["case"]}

    def failing(self, n: int) -> tuple[Mapping[str, Any], str]:
        """The one finding about a case that fails the run, and what it says of that."""
        found = [
            (finding, "\n".join(case["lines"]))
            for finding in self.report["findings"]
            for case in finding["cases"]
            if finding["fails"] and f"/n{n}/" in case["case"]
        ]
        assert len(found) == 1, self.text
        return found[0]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return planted(tmp_path_factory.mktemp("together"), PLANTED, experiments=0)


def planted(folder: Path, faults: Sequence[Fault], experiments: float) -> Seen:
    """A run with faults on the guilty rank, and a case without any behind them."""
    behind = {"check": "collectives", "operation": "all_reduce", "dtype": "int32", "n": 77}
    cases = [*(fault.case for fault in faults), behind]
    write_scenario(folder / "s.toml", cases, case_timeout=8, experiments=experiments)
    path = Injector(folder, Path(), RANKS).startup_with([Planted(fault, (GUILTY,)) for fault in faults])
    command = [sys.executable, "-m", "gpucheck", "run", str(folder / "s.toml"), "--nproc", str(RANKS)]
    command += ["--out", str(folder / "run"), "--json", str(folder / "report.json")]
    done = subprocess.run(command, env=environment(path), capture_output=True, text=True, timeout=DEADLINE)
    print(done.stdout, done.stderr)
    return Seen(done.returncode, done.stdout + done.stderr, json.loads((folder / "report.json").read_text()))


@pytest.mark.parametrize("fault", [*AT_ONCE, *STREAMS], ids=lambda fault: fault.name)
def test_wrong_bytes_are_named_with_sender_and_receiver(seen: Seen, fault: Fault) -> None:
    finding, lines = seen.failing(fault.case["n"])
    assert re.match(fault.expected.title, finding["title"]), seen.text
    assert GUILTY in finding["ranks"] or fault.name == "produced late", finding
    assert all(re.search(said, lines) for said in fault.expected.says), lines


def test_wrong_bytes_of_one_pair_that_come_again_in_fresh_processes_are_its_link(tmp_path: Path) -> None:
    finding, _ = planted(tmp_path, [LINK], experiments=60).failing(LINK.case["n"])
    assert finding["title"] == "link error: rank 0 to rank 1" and finding["ranks"] == [GUILTY], finding


@pytest.mark.parametrize("name", DOES)
def test_a_rank_that_does_not_come_costs_its_case_and_the_other_one_is_its_victim(seen: Seen, name: str) -> None:
    n, _, outcome, says = DOES[name]
    results = seen.results(n)
    assert results[GUILTY]["outcome"] == outcome.value, seen.text
    assert results[0]["outcome"] == "harness" and results[0]["victim_of"] == GUILTY, results[0]
    finding, lines = seen.failing(n)
    assert finding["ranks"] == [GUILTY] and re.search(says, lines), finding


def test_the_case_behind_all_of_them_is_right_in_a_group_of_its_own(seen: Seen) -> None:
    assert {item["outcome"] for item in seen.results(77).values()} == {"pass"} and seen.code == 1


SMALL = """
[[cases]]
check = "collectives"
operation = ["all_reduce", "all_gather", "all_to_all", "reduce_scatter"]
dtype = "fp32"
n = [1, 16777216]

[[cases]]
check = "peer"
way = ["pull", "push", "staged", "symmetric"]
n = 4194304
flights = 2
optional = true
"""


def test_bandwidths_are_those_of_links(run: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text('title = "bandwidth"\ncase_timeout = 60\n' + SMALL)
    done = run(str(tmp_path / "small.toml"), "--bench", ranks=RANKS)
    assert done.code == 0, done.text
    speeds: dict[str, set[float]] = {}
    for record in done.records:
        if record["outcome"] == "pass" and record["timings"]:
            speed = record["cost"]["bytes"] / record["timings"]["call"]
            speeds.setdefault(record["case"], set()).add(speed)
    assert all(len(each) == RANKS for each in speeds.values()) and len(speeds) >= 10, speeds
    assert all(1e9 < speed < 2e12 for case, each in speeds.items() for speed in each if "/n1/" not in case), speeds
    assert "collectives all_reduce, 16777216 x fp32" in done.text
