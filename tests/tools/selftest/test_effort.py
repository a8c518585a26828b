"""Where the time of a run went, read from the lines of its ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpucheck.tools.selftest.effort import effort_of


def write(run: Path, rank: int, *lines: dict[str, Any], torn: str = "") -> None:
    path = run / "records" / f"rank-{rank:05d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def begin(time: float, experiment: str = "", step: int = 0) -> dict[str, Any]:
    return {"event": "begin", "time": time, "experiment": experiment, "step": step}


def result(time: float, experiment: str = "", step: int = 0, compiling: float = 0.0) -> dict[str, Any]:
    return {"event": "result", "time": time, "experiment": experiment, "step": step, "seconds": {"compile": compiling}}


def test_the_slowest_rank_tells_where_the_time_went(tmp_path: Path) -> None:
    start, end = {"event": "start", "time": 100.0}, {"event": "end", "children": 3, "child_seconds": 1.5}
    write(tmp_path, 0, start, begin(101.0), result(104.0, compiling=2.0), {**end, "time": 104.0})
    repeats = [begin(103.0, "repeat"), result(107.0, "repeat"), begin(107.0, "other rank"), result(109.0, "other rank")]
    write(tmp_path, 1, start, begin(101.0), result(103.0), *repeats, {**end, "time": 111.0})
    effort = effort_of(tmp_path)
    assert effort.attempts == {"cases": 2, "repeat": 1, "other rank": 1}
    assert effort.seconds == {"cases": 3.0, "repeat": 4.0, "other rank": 2.0, "waiting": 2.0}
    assert (effort.processes, effort.starting, effort.compiling) == (6, 3.0, 2.0)
    words = "repeat 4 s (1), cases 3 s (2), waiting 2 s, other rank 2 s (1); 6 processes, 0.50 s each; compiling 2 s"
    assert effort.words == words


def test_a_rank_that_waits_for_another_is_not_at_what_it_did_last(tmp_path: Path) -> None:
    judged_late = [begin(1.0), begin(2.0, step=1), result(3.0), result(5.0, step=1)]
    write(tmp_path, 0, *judged_late, begin(45.0, "alone"), result(46.0, "alone"), {"event": "pause", "time": 90.0})
    assert effort_of(tmp_path).seconds == {"cases": 4.0, "waiting": 84.0, "alone": 1.0}
    write(tmp_path, 1, begin(1.0), result(7.0))
    assert effort_of(tmp_path).seconds == {"cases": 6.0}, "the rank that worked longest, not the one that waited"


def test_a_run_that_was_cut_off_tells_what_it_had_done(tmp_path: Path) -> None:
    write(tmp_path, 0, begin(1.0), result(3.0), begin(4.0, "repeat"), torn='{"event": "res')
    effort = effort_of(tmp_path)
    assert effort.attempts == {"cases": 1} and effort.seconds == {"cases": 2.0, "waiting": 1.0}
    assert effort_of(tmp_path / "nothing").words == "; 0 processes; compiling 0 s"
