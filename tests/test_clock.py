"""A clock that jumps: wall time is for people to read, and decides only what is accepted or proven until a day."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import gpucheck
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import read_run
from gpucheck.report import blocks
from gpucheck.report.formats.text import plain
from tests.conftest import Synthetic

PACKAGE = Path(gpucheck.__file__).parent
WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
LAST = {name.rpartition(".")[2] for name in WALL}
STAMPS = {"records/writer.py", "plan/bind.py", "tools/screen/screening.py", "cli/exit_codes.py", "cli/verify.py"}
STAMPS |= {"tools/serve/task_store.py", "tools/serve/http_service.py"}
"""Where a time is written down for people, or held against one that was."""


def test_waits_and_durations_never_look_at_the_wall_clock() -> None:
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if any(f"{name}(" in text for name in LAST) else ():
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in LAST and ast.unparse(called) in WALL:
                seen.add(str(path.relative_to(PACKAGE)))
    assert seen <= STAMPS, f"{seen - STAMPS}: use time.monotonic, which no clock change moves"


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_stamps_that_jump_change_nothing_in_the_report(synthetic: Synthetic, tmp_path: Path, jump: float) -> None:
    outcomes = {(0, 1): Outcome.MISMATCH, (1, 0): Outcome.LOST}
    run_dir = synthetic.write(tmp_path / "run", synthetic.run(synthetic.plan(cases=2, ranks=2), outcomes))
    run = read_run(run_dir)
    before = plain(blocks.build(run, conclude(run)))
    for path in (run_dir / "records").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for number, line in enumerate(lines):
            line["time"] += jump * (number % 2)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(run_dir)
    assert plain(blocks.build(run, conclude(run))) == before
