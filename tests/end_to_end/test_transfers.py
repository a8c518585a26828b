"""Wrong bytes between ranks: each fault, planted on each of three ranks, is named with pair of ranks and bytes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck import checks
from gpucheck.checks import collectives
from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import read_plan
from gpucheck.tools.selftest.catalogue import choose
from gpucheck.tools.selftest.catalogue.collective_faults import FAULTS
from gpucheck.tools.selftest.fault import COLLECTIVE_CALLS, PEER_COPIES, Edit, Expected, Fault
from gpucheck.tools.selftest.injection import Injector, Planted, write_scenario
from tests.end_to_end.conftest import DEADLINE, Finished, Lab, environment, one_of

RANKS = 3
SEND = "    function = distributed.all_gather_into_tensor\n    return [function(each.received, each.sent, each.group"
STALE = """    if each.receives[0] == 211:
        before = globals().get("before", each.sent)
        globals()["before"] = each.sent.clone()
        each.sent.copy_(before)
{anchor}"""
NOTHING = "    if each.receives[0] == 212:\n        each.received.zero_()\n{anchor}"


def sender_fault(name: str, anchor: str, text: str, operation: str, n: int, title: str) -> Fault:
    case = {"check": "collectives", "operation": operation, "dtype": "int32", "n": n}
    return Fault(name, name, Edit(COLLECTIVE_CALLS, anchor, text), case, Expected(Outcome.MISMATCH, title))


SENDERS = (
    sender_fault(
        "stale",
        "    function = distributed.all_gather_into_tensor\n",
        STALE,
        "all_gather",
        211,
        r"stale or early buffer: stale, given by rank {rank}",
    ),
    sender_fault(
        "gives nothing",
        "    return [distributed.all_reduce(each.received",
        NOTHING,
        "all_reduce",
        212,
        r"missing contribution: ranks 0-2 lacks rank {rank}",
    ),
)


FLIGHTS = Fault(
    "swapped flights",
    "two copies from one rank arrive in each other's place",
    Edit(PEER_COPIES, "staged[at][self.place, flight]", "staged[at][self.place, flight ^ (at == 1)]"),
    {"check": "peer", "way": "staged", "n": 213, "flights": 2},
    Expected(Outcome.MISMATCH, r"chunk swapped or dropped: rank 1 to rank \d"),
)


@pytest.fixture(scope="module", params=one_of(RANKS, now=1))
def planted(lab: Lab, request: pytest.FixtureRequest) -> tuple[int, Finished]:
    """A run with every fault on one rank."""
    folder, rank, faults = lab.new_folder(), request.param, (*FAULTS, *SENDERS, FLIGHTS)
    write_scenario(folder / "scenario.toml", [fault.case for fault in faults], case_timeout=60, experiments=600)
    injector = Injector(folder, Path(), RANKS)
    path = injector.startup_with([Planted(fault, (rank,)) for fault in faults])
    return rank, lab.finish(library=None, scenario=folder / "scenario.toml", nproc=RANKS, path=path)


def case_of(fault: Fault) -> str:
    return f"/n{fault.case['n']}"


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_a_fault_on_a_receiver_is_named_with_pair_and_bytes(planted: tuple[int, Finished], name: str) -> None:
    rank, run = planted
    (fault,) = choose([name])
    assert run.outcomes(case_of(fault)) == ["mismatch" if each == rank else "pass" for each in range(RANKS)], run.text
    finding = run.finding(case_of(fault))
    assert finding["ranks"] == [rank] and finding["fails"]
    title = fault.expected.title.replace("lacks rank", "lacks ranks").replace(r"ranks \d", r"ranks \d, \d")
    assert re.fullmatch(title, finding["title"]), finding
    lines = "\n".join(finding["failed_case"]["lines"])
    says = () if name == "missing-contribution" else fault.expected.says
    assert all(re.search(said, lines) for said in says), lines
    told = next(r for r in run.report["results"] if case_of(fault) in r["case"] and r["rank"] == rank)["transfers"]
    assert told and {each["receiver"] for each in told} == {rank}


@pytest.mark.parametrize("fault", SENDERS, ids=lambda fault: fault.name)
def test_a_fault_of_a_sender_is_named_by_all_that_it_sends_to(planted: tuple[int, Finished], fault: Fault) -> None:
    rank, run = planted
    finding = run.finding(case_of(fault))
    assert finding["title"] == fault.expected.title.replace("{rank}", str(rank)), run.text
    assert finding["ranks"] == [0, 1, 2]
    results = [r for r in run.report["results"] if case_of(fault) in r["case"]]
    assert {each["sender"] for result in results for each in result["transfers"]} == {rank}


def test_what_comes_again_in_fresh_processes_is_said(planted: tuple[int, Finished]) -> None:
    _, run = planted
    (link,) = choose(["link-error"])
    evidence = run.finding(case_of(link))["evidence"]
    assert any("wrong in 5 of 5 fresh processes" in line for line in evidence), evidence
    assert any("wrong with the ranks in step" in line for line in evidence), evidence


def test_copies_that_arrive_in_each_others_place_name_their_pair(planted: tuple[int, Finished]) -> None:
    rank, run = planted
    assert run.outcomes(case_of(FLIGHTS)) == ["mismatch" if each == rank else "pass" for each in range(RANKS)]
    finding = run.finding(case_of(FLIGHTS))
    assert finding["title"] == f"chunk swapped or dropped: rank 1 to rank {rank}" and finding["ranks"] == [rank]
    assert f"rank 1 to rank {rank}: swapped: bytes 852 to 1703 of flight0, 213 of 213 elements: " in run.lines("/n213")
    assert "what the sender gave in flight 1" in run.lines("/n213")


def test_the_command_of_a_finding_shows_the_wrong_elements(planted: tuple[int, Finished]) -> None:
    """As for a case of one rank: where, what it is, what it must be, each whole number with all of its digits."""
    rank, run = planted
    (fault,) = choose(["wrong-reduction"])
    command = [sys.executable, "-m", *shlex.split(run.finding(case_of(fault))["failed_case"]["replay"])]
    path = read_plan(run.folder).command[2].replace("scenario.toml", "startup")  # what is planted
    done = subprocess.run(command, env=environment(Path(path)), capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"on rank {rank}; as in the run: mismatch" in done.stdout and "the bytes of the run" in done.stdout
    case = checks.load("collectives").spec.case(fault.case, "exact", 0).at(rank, RANKS)
    right = collectives.right(case, 0)
    for place in range(3, 7):
        row = rf"^\({place}\) +{int(right[place])} +{int(right[place]) + 1} "
        assert re.search(row, done.stdout, re.MULTILINE), done.stdout
    assert "not known" not in done.stdout, "programs are not looked for, so nothing is said of them"
