from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.record import Outcome
from gpucheck.records.writer import RecordWriter
from tests.conftest import Synthetic


def test_every_event_is_on_disk_when_the_call_returns(synthetic: Synthetic, tmp_path: Path) -> None:
    writer, plan = RecordWriter(tmp_path, 3), synthetic.plan()
    path = tmp_path / "records" / "rank-00003.jsonl"
    events = []
    for write in (
        lambda: writer.start(host="h"),
        lambda: writer.begin(1, "alone"),
        lambda: writer.result(synthetic.record(plan, 1, 0)),
        lambda: writer.end(child_seconds=1.0),
    ):
        write()
        assert path.read_bytes().endswith(b"\n")
        events.append(json.loads(path.read_text().splitlines()[-1]))
    assert [event["event"] for event in events] == ["start", "begin", "result", "end"]
    assert events[0]["schema"] == events[2]["schema"] == 1 and events[0]["host"] == "h"
    assert (events[1]["step"], events[1]["experiment"]) == (1, "alone")
    assert all(event["time"] > 0 for event in events)


def test_a_writer_appends_to_what_is_there(tmp_path: Path) -> None:
    RecordWriter(tmp_path, 0).start()
    RecordWriter(tmp_path, 0).end()
    assert len((tmp_path / "records" / "rank-00000.jsonl").read_text().splitlines()) == 2


def test_lines_of_several_threads_do_not_mix(synthetic: Synthetic, tmp_path: Path) -> None:
    writer, plan = RecordWriter(tmp_path, 0), synthetic.plan()
    long = synthetic.record(plan, 0, 0, traceback="x" * 20000)
    threads = [threading.Thread(target=lambda: [writer.result(long) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "records" / "rank-00000.jsonl").read_text().splitlines()
    assert len(lines) == 80 and all(json.loads(line)["event"] == "result" for line in lines)


def test_a_line_that_does_not_fit_is_taken_back(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk takes what it has room for, and then no more."""
    writer, plan = RecordWriter(tmp_path, 0), synthetic.plan()
    writer.start()
    write, room = os.write, [100]

    def limited(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken = write(fd, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(OSError, match="No space left"):
        writer.result(synthetic.record(plan, 0, 0))
    room[0] = 1000
    writer.skip("full")
    events = [json.loads(line)["event"] for line in (tmp_path / "records/rank-00000.jsonl").read_text().splitlines()]
    assert events == ["start", "skip"]


def test_a_limit_on_the_size_of_files_loses_one_line(synthetic: Synthetic, tmp_path: Path) -> None:
    """The kernel itself refuses: RLIMIT_FSIZE cuts a write short, and fails the next."""
    code = (
        "import pathlib, resource, signal, sys\n"
        "from gpucheck.records.writer import RecordWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "writer = RecordWriter(pathlib.Path(sys.argv[1]), 0)\n"
        "writer.start(host='h' * 300)\n"
        "try:\n    writer.start(host='h' * 1000)\nexcept OSError as error:\n    writer.skip(error.strerror)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    lines = [json.loads(line) for line in (tmp_path / "records/rank-00000.jsonl").read_text().splitlines()]
    assert [(line["event"], line.get("reason")) for line in lines] == [("start", None), ("skip", "File too large")]


def test_why_nothing_more_runs_takes_the_place_of_cases_begun_on_a_full_disk(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    """But never that of anything else."""
    code = (
        "import pathlib, resource, signal, sys\n"
        "from gpucheck.records.writer import RecordWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "writer = RecordWriter(pathlib.Path(sys.argv[1]), 0)\n"
        "writer.start()\nfor step in range(3):\n    writer.begin(step)\n"
        "size = next(pathlib.Path(sys.argv[1]).glob('records/*')).stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[2]), size + int(sys.argv[2])))\n"
        "writer.skip('s' * int(sys.argv[3]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def left(room: int, length: int) -> list[str]:
        folder = tmp_path / f"{room}-{length}"
        subprocess.run(
            [sys.executable, "-c", code, str(folder), str(room), str(length)],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        return [json.loads(line)["event"] for line in (folder / "records/rank-00000.jsonl").read_text().splitlines()]

    assert left(200, 40) == ["start", "begin", "begin", "begin", "skip"]
    assert left(10, 20) == ["start", "begin", "begin", "skip"]
    assert left(10, 400) == ["start"]


def test_a_line_that_was_cut_off_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "records" / "rank-00000.jsonl"
    path.parent.mkdir()
    path.write_text('{"event":"start"}\n{"event":"resu')
    RecordWriter(tmp_path, 0).death("was killed by SIGKILL")
    first, torn, last = path.read_text().splitlines()
    assert torn == '{"event":"resu' and json.loads(last)["how"] == "was killed by SIGKILL"
    RecordWriter(tmp_path, 0)
    assert len(path.read_text().splitlines()) == 3


def test_a_signal_in_the_middle_of_a_line(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, 0)
    with writer._lock:  # as it is while a line is written
        os.write(writer._fd, b'{"event":"resu')
        writer.stop(15)
    writer.stop(15)
    lines = (tmp_path / "records" / "rank-00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["signal"] for line in lines[1:]] == [15, 15]


FORGED = '{"event":"result","step":1,"case":"c","rank":0,"outcome":"pass"}\n'


@pytest.mark.parametrize(
    "forge",
    [
        lambda path: path.write_text(path.read_text() + FORGED),
        lambda path: path.write_text(path.read_text().replace("mismatch", "pass")),
        lambda path: path.write_text(""),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.with_name("other").write_text(FORGED), path.with_name("other").replace(path)),
        lambda path: (path.unlink(), path.symlink_to(path.with_name("other"))),
        lambda path: None,
    ],
)
def test_records_that_code_under_test_has_changed_are_written_anew(
    synthetic: Synthetic, tmp_path: Path, forge: Any
) -> None:
    path, plan = tmp_path / "records" / "rank-00000.jsonl", synthetic.plan()
    writer = RecordWriter(tmp_path, 0, guarded=True)
    writer.start()
    writer.result(replace(synthetic.record(plan, 1, 0), outcome=Outcome.MISMATCH))
    before = path.read_text()
    forge(path)
    changed = not path.is_file() or path.read_text() != before
    writer.end(children=1)
    *lines, end = path.read_text().splitlines(keepends=True)
    assert "".join(lines) == before and '"outcome":"mismatch"' in before
    assert json.loads(end).get("restored", False) is changed and json.loads(end)["children"] == 1
