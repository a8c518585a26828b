"""The preset for several nodes, started as printed: two agents on one machine give one report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from gpucheck.templates.presets import presets
from tests.end_to_end.conftest import DEADLINE, Lab, environment, free_ports


def test_two_nodes_one_report(lab: Lab, tmp_path: Path) -> None:
    script, command, out = tmp_path / "torchrun.sh", tmp_path / "gpucheck", tmp_path / "run"
    script.write_text(presets()["torchrun"].text)
    command.write_text("from gpucheck.cli.app import main\nmain()\n")
    known = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(2)), "OUT": str(out)}
    known |= {"PYTHON": sys.executable, "GPUCHECK": str(command), "SCENARIO": "smoke"}
    options = ["--device", "cpu", "--checks", "swiglu", "--library", f"path:{lab.library.package}"]
    nodes = [
        subprocess.Popen(
            ["bash", str(script), *options],
            env={**environment(), **known, "NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        texts = [node.communicate(timeout=DEADLINE)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], texts
    assert "PASS" in texts[0] and "on 2 ranks" in texts[0]
    plan = json.loads((out / "plan.json").read_text())
    assert (plan["nnodes"], plan["nproc"]) == (2, 1)
    assert sorted(os.listdir(out / "records")) == ["rank-00000.jsonl", "rank-00001.jsonl"]
