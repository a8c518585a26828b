from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpucheck.model.record import Outcome
from gpucheck.records.live import Follower
from gpucheck.records.writer import RecordWriter
from tests.conftest import Synthetic


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    return Follower(tmp_path, 2)


def test_nothing_to_follow_yet(follower: Follower) -> None:
    assert follower.poll() == [] and [state.started for state in follower.ranks.values()] == [False, False]


def test_states_follow_the_events(follower: Follower, synthetic: Synthetic) -> None:
    plan, writer = synthetic.plan(cases=3, ranks=2), RecordWriter(follower.run, 1)
    writer.start()
    assert follower.poll() == [] and follower.ranks[1].started and not follower.ranks[0].started
    writer.begin(0)
    follower.poll()
    assert follower.ranks[1].step == 0
    for step, outcome in enumerate((Outcome.PASS, Outcome.INAPPLICABLE, Outcome.MISMATCH)):
        writer.result(synthetic.record(plan, step, 1, outcome))
    assert [record.outcome for record in follower.poll()] == [Outcome.PASS, Outcome.INAPPLICABLE, Outcome.MISMATCH]
    assert follower.poll() == []
    writer.end()
    follower.poll()
    state = follower.ranks[1]
    assert (state.done, state.failed, state.step, state.ended) == (3, 1, None, True)


def test_a_failure_that_must_come_is_no_news(tmp_path: Path, synthetic: Synthetic) -> None:
    follower, plan, writer = Follower(tmp_path, 1, frozenset({1})), synthetic.plan(cases=2), RecordWriter(tmp_path, 0)
    for step in range(2):
        writer.result(synthetic.record(plan, step, 0, Outcome.MISMATCH))
    follower.poll()
    assert (follower.ranks[0].done, follower.ranks[0].failed) == (2, 1)


def test_a_line_being_written_waits_for_its_end(follower: Follower, synthetic: Synthetic) -> None:
    line = json.dumps({**synthetic.record(synthetic.plan(), 0, 0).to_json(), "message": "ü\r\n"}) + "\n"
    data = line.encode()
    path = follower.run / "records" / "rank-00000.jsonl"
    path.parent.mkdir()
    for cut in (1, 60, len(data) - 1):
        path.write_bytes(data[:cut])
        assert follower.poll() == []
    path.write_bytes(data + data[:10])
    assert len(follower.poll()) == 1
    path.write_bytes(data + data)
    assert len(follower.poll()) == 1


def test_lines_that_cannot_be_read_stop_nothing(follower: Follower, synthetic: Synthetic) -> None:
    good = json.dumps(synthetic.record(synthetic.plan(), 0, 0).to_json())
    path = follower.run / "records" / "rank-00000.jsonl"
    path.parent.mkdir()
    bad = ["{", "3", "[]", "null", '{"event":"begin"}', '{"event":"result"}', good.replace('"pass"', '"splendid"')]
    path.write_text("\n".join([*bad, good, ""]))
    path.with_name("rank-old.jsonl").write_text("{}\n")
    assert len(follower.poll()) == 1 and follower.ranks[0].done == 1
