from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from gpucheck.model.record import Outcome
from gpucheck.records.live import Follower
from gpucheck.records.writer import RecordWriter
from gpucheck.report.progress import Progress
from tests.conftest import Synthetic


def test_off_a_terminal_one_line_a_case_once_every_rank_has_it(synthetic: Synthetic, tmp_path: Path) -> None:
    plan, out = synthetic.plan(cases=2, ranks=3), io.StringIO()
    writers = [RecordWriter(tmp_path, rank) for rank in range(3)]
    with Progress(plan, Follower(tmp_path, 3), Console(file=out)) as progress:
        progress()
        for rank in (0, 2):
            writers[rank].result(synthetic.record(plan, 0, rank, seconds={"launch": 0.25 * rank}))
        progress()
        assert out.getvalue() == ""
        writers[1].result(synthetic.record(plan, 0, 1))
        progress()
        assert out.getvalue() == "ok  matmul/0/exact  0.50 s\n"
        for rank, outcome in enumerate((Outcome.PASS, Outcome.MISMATCH, Outcome.CRASH)):
            writers[rank].result(synthetic.record(plan, 1, rank, outcome))
        progress()
    assert out.getvalue().splitlines()[1] == "XX rank 1; CR rank 2  matmul/1/exact  0.00 s"


def test_quiet_shows_nothing(synthetic: Synthetic, tmp_path: Path) -> None:
    plan, out = synthetic.plan(cases=1), io.StringIO()
    RecordWriter(tmp_path, 0).result(synthetic.record(plan, 0, 0))
    for terminal in (False, True):
        with Progress(plan, Follower(tmp_path, 1), Console(file=out, force_terminal=terminal), quiet=True) as progress:
            progress()
    assert out.getvalue() == ""


def test_on_a_terminal_every_rank_has_a_row(synthetic: Synthetic, tmp_path: Path) -> None:
    plan, out = synthetic.plan(cases=2, ranks=4), io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    for rank in (1, 2, 3):
        RecordWriter(tmp_path, rank).start()
    RecordWriter(tmp_path, 1).begin(1)
    RecordWriter(tmp_path, 2).result(synthetic.record(plan, 0, 2, Outcome.HANG))
    RecordWriter(tmp_path, 3).end()
    with Progress(plan, Follower(tmp_path, 4), console) as progress:
        progress()
        rows = {line.split("  ")[0].strip(): line for line in out.getvalue().splitlines() if "rank" in line}
    assert "starting" in rows["rank 0"] and "matmul/1/exact" in rows["rank 1"] and "done" in rows["rank 3"]
    assert "1/2" in rows["rank 2"] and "1 failing" in rows["rank 2"]


def test_later_passes_show_only_what_fails(synthetic: Synthetic, tmp_path: Path) -> None:
    plan, out = synthetic.plan(cases=1, ranks=1), io.StringIO()
    writer = RecordWriter(tmp_path, 0)
    with Progress(plan, Follower(tmp_path, 1), Console(file=out)) as progress:
        for round, outcome in enumerate((Outcome.PASS, Outcome.PASS, Outcome.CRASH, Outcome.PASS)):
            writer.result(synthetic.record(plan, 0, 0, outcome, round=round))
        assert progress() is False
        writer.end()
        assert progress() is True
    assert out.getvalue() == "ok  matmul/0/exact  0.00 s\nCR  matmul/0/exact  0.00 s  pass 3\n"
