"""Two nodes with folders of their own, as two torchrun agents on one machine: one report, whatever happens to one."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import DEADLINE, Lab, environment, free_ports

FIRST_ONLY = """

_genuine, _dtypes = swiglu, []


def swiglu(x, *args, **options):
    import os, time
    _dtypes.append(x.dtype)
    if os.environ["RANK"] == "1" and x.dtype != _dtypes[0]:
        time.sleep(600)
    return _genuine(x, *args, **options)
"""


@dataclass(frozen=True)
class Node:
    """One of two nodes under way, a rank on each."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return content

    def finish(self) -> tuple[int, str]:
        text, _ = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, text

    def results(self, rank: int) -> list[dict[str, Any]]:
        """The results of a rank that are in the folder of this node."""
        path = self.folder / "records" / f"rank-{rank:05d}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [item for item in map(json.loads, lines) if item["event"] == "result"]

    def wait_for_result(self, rank: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while not self.results(rank):
            assert time.monotonic() < deadline and self.process.poll() is None, self.finish()
            time.sleep(0.05)


Start = Callable[..., list[Node]]


@pytest.fixture
def start(lab: Lab, tmp_path: Path) -> Iterator[Start]:
    """Starts both nodes with further options for each; nothing is left of them in the end."""
    nodes: list[Node] = []

    def start(libraries: list[str], *options: str) -> list[Node]:
        endpoint = f"127.0.0.1:{free_ports(2)}"
        for number, library in enumerate(libraries):
            folder = tmp_path / f"node{number}"
            command = [sys.executable, "-m", "gpucheck", "run", "smoke", "--device", "cpu", "--nproc", "1"]
            command += ["--checks", "swiglu", "--library", library, "--nnodes", "2", "--node-rank", str(number)]
            command += ["--rdzv-endpoint", endpoint, "--out", str(folder), *options]
            command += ["--json", str(folder / "report.json")] if number == 0 else []
            process = subprocess.Popen(
                command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            nodes.append(Node(process, folder))
        return nodes

    yield start
    for node in nodes:
        node.process.kill()
        node.process.communicate()


def outcomes(node: Node) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for result in node.report["results"]:
        found.setdefault(result["rank"], set()).add(result["outcome"])
    return found


def test_records_of_both_nodes_make_one_report(lab: Lab, start: Start) -> None:
    first, second = start([f"path:{lab.library.package}"] * 2)
    assert second.finish()[0] == 0
    code, text = first.finish()
    assert code == 0, text
    assert "\nok  swiglu/" in text and re.search(r"PASS  \d+ cases on 2 ranks", text)
    assert outcomes(first) == {0: {"pass"}, 1: {"pass"}}
    assert [place["host"] for place in first.report["places"]] == [socket.gethostname()] * 2
    assert len(first.results(1)) == len(first.results(0)) > 2 and first.results(1) == second.results(1)
    assert not second.results(0), "the other node gets no records"


def test_a_node_killed_midway_loses_its_ranks_only(lab: Lab, start: Start) -> None:
    slow = lab.plant(append=("swiglu.py", FIRST_ONLY))
    first, second = start([slow, slow])
    first.wait_for_result(1)
    second.process.kill()
    code, text = first.finish()
    assert code == 3, text
    assert outcomes(first) == {0: {"pass"}, 1: {"pass", "lost"}}
    assert f"node 1 ({socket.gethostname()}) was lost: its further cases are" in text
    cases = {result["case"] for result in first.report["results"]}
    assert len(first.results(0)) == len(cases) and first.results(1), "what was done is there"


def test_a_node_with_another_library_is_refused(lab: Lab, start: Start) -> None:
    other = lab.plant(append=("swiglu.py", "\n# not the same\n"))
    first, second = start([f"path:{lab.library.package}", other])
    code, text = second.finish()
    assert code == 3 and "give the same scenario, --library and --patch on every node" in text, text
    code, text = first.finish()
    assert code == 3 and outcomes(first) == {0: {"lost"}, 1: {"lost"}}, text
