"""Ranks together, over gloo: right ones pass, and one that hangs, dies or raises costs its case and no other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.fault import COLLECTIVE_CALLS, Edit, Expected, Fault
from gpucheck.tools.selftest.injection import Injector, Planted, write_scenario
from tests.end_to_end.conftest import DEADLINE, Finished, Lab, Running, environment, free_ports, one_of

BEFORE = "    each.received.copy_(each.sent)\n"
N = {"hangs": 31, "dies": 32, "raises": 33, "stopped": 34, "dies inside": 35, "clean": 36, "skips": 37, "size": 38}
"""The size that tells the case in which a rank does something."""
IMPORTS = "import os, signal, time, threading"
DOES = {
    "hangs": "while True: time.sleep(1)",
    "dies": "os.kill(os.getpid(), signal.SIGKILL)",
    "raises": "raise RuntimeError('no such buffer')",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "dies inside": "threading.Timer(0.2, os.kill, (os.getpid(), 9)).start(); time.sleep(0.1)",
    "skips": "return [distributed.broadcast(each.received, 0, each.group)]",
    "size": "each = __import__('dataclasses').replace(each, received=each.received[:-1])",
}


def plant(does: str) -> Fault:
    """A rank that does something right before its all_reduce."""
    text = f"{{anchor}}    if each.sent.numel() == {N[does]}:\n        {IMPORTS}\n        {DOES[does]}\n"
    return Fault(does, does, Edit(COLLECTIVE_CALLS, BEFORE, text), {}, Expected(Outcome.HANG, ""))


def cases(*names: str) -> list[Mapping[str, Any]]:
    return [{"check": "collectives", "operation": "all_reduce", "n": N[name]} for name in names]


def start(lab: Lab, *planted: tuple[str, int], ranks: int, **limits: float) -> Running:
    """A run of these cases on so many ranks, each fault planted on its rank, with a clean case behind."""
    folder = lab.new_folder()
    scenario = folder / "scenario.toml"
    names = [does for does, _ in planted]
    write_scenario(scenario, cases(*names, "clean"), **{"case_timeout": 6, "experiments": 0, **limits})
    path = Injector(folder, Path(), ranks).startup_with([Planted(plant(does), (rank,)) for does, rank in planted])
    return lab.start(library=None, scenario=scenario, nproc=ranks, path=path)


def test_every_rank_passes(lab: Lab) -> None:
    folder = lab.new_folder()
    write_scenario(folder / "s.toml", [*cases("clean"), {"check": "peer", "way": "staged"}], case_timeout=60)
    run = lab.finish("--bench", library=None, scenario=folder / "s.toml", nproc=3)
    assert run.code == 0, run.text
    assert run.outcomes("n36") == ["pass"] * 3
    for row, size in (
        ("collectives all_reduce, 36 x bf16", 2 * 2 / 3 * 36 * 2),
        ("peer staged, 1000", 2 * 4 * 1000 * 4),
    ):
        records = [run.results(rank)[case] for rank in range(3) for case in run.results(rank) if row[:4] in case]
        assert len(records) == 3 and all(record["timings"]["call"] > 0 for record in records)
        assert [record["cost"]["bytes"] for record in records] == [pytest.approx(size)] * 3
        assert row in run.text, "with its bandwidth"
    assert "which says nothing about GPUs" in run.text


@pytest.fixture(scope="module", params=one_of(3, now=0))
def contained(lab: Lab, request: pytest.FixtureRequest) -> Iterator[tuple[int, Finished]]:
    """Three ranks, one of which does all that a rank can do wrong, case by case."""
    names = ("hangs", "dies", "raises", "stopped", "dies inside", "skips", "size")
    yield request.param, start(lab, *((name, request.param) for name in names), ranks=3).finish()


OUTCOMES = {"hangs": "hang", "dies": "crash", "raises": "error", "stopped": "hang", "dies inside": "crash"}


@pytest.mark.parametrize("does", OUTCOMES)
def test_only_the_rank_at_fault_is_blamed(contained: tuple[int, Finished], does: str) -> None:
    rank, run = contained
    expected = ["harness"] * 3
    expected[rank] = OUTCOMES[does]
    assert run.outcomes(f"n{N[does]}") == expected, run.text
    results = {r: run.results(r)[f"collectives/all_reduce/bf16/n{N[does]}/exact"] for r in range(3)}
    assert [results[r]["victim_of"] for r in range(3)] == [None if r == rank else rank for r in range(3)]
    failing = [finding for finding in run.findings(f"n{N[does]}") if finding["fails"]]
    assert [finding["ranks"] for finding in failing] == [[rank]]


def test_a_rank_that_does_not_come_is_named_with_the_call(contained: tuple[int, Finished]) -> None:
    rank, run = contained
    others = sorted({0, 1, 2} - {rank})
    (finding,) = [finding for finding in run.findings(f"n{N['hangs']}") if finding["fails"]]
    assert f"did not come to all_reduce number 1 of ranks 0-2, where ranks {others[0]}" in str(finding), finding


@pytest.mark.parametrize("does", ["skips", "size"])
def test_ranks_that_call_different_things_are_told_apart(contained: tuple[int, Finished], does: str) -> None:
    rank, run = contained
    result = run.results(rank)[f"collectives/all_reduce/bf16/n{N[does]}/exact"]
    assert result["outcome"] in ("hang", "error", "crash", "violation"), result
    signatures = {part["rank"]: part["signature"] for part in result["progress"]}
    assert len(set(signatures.values())) == 2 and list(signatures.values()).count(signatures[rank]) == 1
    failing = [finding for finding in run.findings(f"n{N[does]}") if finding["fails"]]
    assert [finding["ranks"] for finding in failing] == [[rank]], run.text


def test_the_case_behind_all_that_is_right(contained: tuple[int, Finished]) -> None:
    _, run = contained
    assert run.outcomes("n36") == ["pass"] * 3
    assert run.code == 1


def test_one_rank_has_nobody_to_run_with(lab: Lab, tmp_path: Path) -> None:
    write_scenario(tmp_path / "s.toml", cases("clean"))
    run = lab.finish(library=None, scenario=tmp_path / "s.toml", nproc=1)
    assert run.code == 5 and "it takes two ranks or more, this run has one" in run.text
    (finding,) = run.report["findings"]
    assert finding["title"] == "no other rank to run with" and "--nproc 2" in finding["fix"]


def test_ranks_of_two_nodes_run_together(lab: Lab) -> None:
    """Two nodes of two ranks each: a sub-group over both, and a rank of the second one that does not come."""
    folder = lab.new_folder()
    halves = [{"check": "collectives", "operation": "all_to_all", "n": 30, "groups": "halves"}]
    write_scenario(folder / "s.toml", [*halves, *cases("hangs", "clean")], case_timeout=6, experiments=0)
    path = Injector(folder, Path(), 4).startup_with([Planted(plant("hangs"), (3,))])
    endpoint = f"127.0.0.1:{free_ports(2)}"
    command = [sys.executable, "-m", "gpucheck", "run", str(folder / "s.toml"), "--device", "cpu", "--nproc", "2"]
    command += ["--nnodes", "2", "--rdzv-endpoint", endpoint]
    nodes = [
        subprocess.Popen(
            [*command, "--node-rank", str(number), "--out", str(folder / f"node{number}"), *more],
            env=environment(path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, more in enumerate((["--json", str(folder / "node0" / "report.json")], []))
    ]
    try:
        text, _ = nodes[0].communicate(timeout=DEADLINE)
        nodes[1].communicate(timeout=DEADLINE)
    finally:
        for node in nodes:
            node.kill()
    run = Finished(nodes[0].returncode, text, folder / "node0")
    assert run.outcomes("n30-") == run.outcomes("n36") == ["pass"] * 4, text
    assert run.outcomes("n31") == ["harness"] * 3 + ["hang"]
    (finding,) = [finding for finding in run.findings("n31") if finding["fails"]]
    assert finding["ranks"] == [3] and finding["cause"] == "absent rank"
