from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.records.writer import RecordWriter

if TYPE_CHECKING:
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
