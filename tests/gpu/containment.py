"""Kernels that do what no kernel should, on the last rank of a run: what it costs, and what the report says of it.

``python tests/gpu/containment.py [LIBRARY] [RANKS]`` shows it on a machine with GPUs; the test beside it reads the
report.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucheck.library.library_option import parse_source, resolve
from gpucheck.tools.selftest.catalogue import choose
from gpucheck.tools.selftest.injection import Injector, Planted, write_scenario

FAULTS = ("illegal-address", "device-assert", "gpu-memory", "endless-kernel")
DEADLINE = 280.0  # s for the whole run
OTHERS = ("swiglu", "topk", "routing", "attention")  # checks that nothing is planted in


@dataclass(frozen=True)
class Contained:
    """The run that has ended."""

    code: int
    text: str
    report: dict[str, Any]
    folder: Path
    planted: dict[str, str]  # fault -> id of its case

    def fresh_seconds(self, rank: int) -> list[float]:
        """What it took to have a fresh process ready, for each case of a rank that needed one."""
        lines = (self.folder / "records" / f"rank-{rank:05d}.jsonl").read_text().splitlines()
        items = (json.loads(line) for line in lines)
        planned = (item for item in items if item["event"] == "result" and not item["experiment"])
        waits = (item["seconds"].get("child", 0.0) for item in planned)
        return [seconds for seconds in waits if seconds > 0.05]


def run(folder: Path, library: str | None, ranks: int) -> Contained:
    """Plants all faults on the last rank, runs, and reads the report."""
    chosen = choose(FAULTS)
    copy = resolve(parse_source(library))
    package = Injector(folder / "planted", copy.package, ranks).library_with(
        [Planted(fault, (ranks - 1,)) for fault in chosen]
    )
    scenario, others = folder / "containment.toml", [{"check": check} for check in OTHERS]
    cases = [*others[:1], *(fault.case for fault in chosen), *others[1:]]
    write_scenario(scenario, cases, timeout=240.0, case_timeout=20.0, experiments=90.0)
    command = [sys.executable, "-m", "gpucheck", "run", str(scenario), "--nproc", str(ranks)]
    command += ["--library", f"path:{package}", "--out", str(folder / "run"), "--json", str(folder / "report.json")]
    done = subprocess.run([*command, "-v"], capture_output=True, text=True, timeout=DEADLINE)
    report = json.loads((folder / "report.json").read_text())
    seen = {result["case"] for result in report["results"]}
    planted = {fault.name: next(case for case in seen if f"-n{fault.case['n']}-" in case) for fault in chosen}
    return Contained(done.returncode, done.stdout + done.stderr, report, folder / "run", planted)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        shown = run(Path(name), sys.argv[1] if len(sys.argv) > 1 else None, int((sys.argv[2:] or ["2"])[0]))
        print(shown.text)
        for rank in shown.report["ranks"]:
            waits = ", ".join(f"{seconds:.2f}" for seconds in shown.fresh_seconds(rank))
            print(f"rank {rank}: a fresh process was ready after {waits} s")
