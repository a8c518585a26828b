"""What is said of cases without a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import Run, read_run, write_json
from gpucheck.records.writer import RecordWriter
from tests.conftest import Synthetic


class Ranks:
    """A run of three cases on two ranks, written event by event."""

    def __init__(self, synthetic: Synthetic, folder: Path) -> None:
        self.synthetic, self.folder = synthetic, folder
        self.plan = synthetic.plan(cases=3, ranks=2)
        write_json(folder / "plan.json", self.plan.to_json())
        self.writers = [RecordWriter(folder, rank) for rank in range(2)]
        for writer in self.writers:
            writer.start()

    def do(self, rank: int, *steps: int, round: int = 0, outcome: Outcome = Outcome.PASS) -> None:
        for step in steps:
            self.writers[rank].begin(step, round=round)
            self.writers[rank].result(self.synthetic.record(self.plan, step, rank, outcome, round=round))

    def read(self, **outcome: Any) -> Run:
        write_json(self.folder / "outcome.json", {"code": 1, "signal": 0, "timed_out": False, **outcome})
        return read_run(self.folder)


@pytest.fixture
def ranks(synthetic: Synthetic, tmp_path: Path) -> Ranks:
    return Ranks(synthetic, tmp_path)


def test_a_supervisor_that_died_is_named(ranks: Ranks) -> None:
    ranks.do(0, 0, 1, 2)
    ranks.writers[0].end()
    ranks.do(1, 0)
    ranks.writers[1].begin(1)
    ranks.writers[1].death("was killed by SIGKILL")
    run = ranks.read(code=0)
    assert run.records[(0, 1)].outcome is Outcome.PASS
    assert run.records[(1, 1)].message == "the rank ended while this case ran: its supervisor was killed by SIGKILL"
    assert run.records[(2, 1)].message == "the rank ended before this case: its supervisor was killed by SIGKILL"


def test_a_rank_that_never_started_may_still_have_died(ranks: Ranks) -> None:
    path = ranks.folder / "records" / "rank-00001.jsonl"
    path.write_text("")
    RecordWriter(ranks.folder, 1).death("ended with exit code 9")
    message = ranks.read(code=0).records[(0, 1)].message
    assert message == "the rank never started: its supervisor ended with exit code 9"


def test_the_victim_of_another_rank_is_told_from_it(ranks: Ranks) -> None:
    for rank in (0, 1):
        ranks.do(rank, 0)
        ranks.writers[rank].begin(1)
    ranks.writers[0].stop(15)
    run = ranks.read()
    victim, cause = run.records[(1, 0)], run.records[(1, 1)]
    assert victim.victim_of == 1 and cause.victim_of is None
    words = "the rank ended while this case ran: torchrun ended it with SIGTERM since rank 1 had died"
    assert (victim.message, cause.message) == (words, "the rank ended while this case ran")


@pytest.mark.parametrize("outcome", [{"code": None, "signal": 2}, {"code": None, "timed_out": True}])
def test_nobody_is_a_victim_of_another_rank_where_the_command_ended_them(ranks: Ranks, outcome: dict[str, Any]) -> None:
    ranks.do(0, 0)
    ranks.writers[0].stop(15)
    run = ranks.read(**outcome)
    assert {record.victim_of for record in run.records.values()} == {None}
    assert run.records[(1, 0)].message == "the rank ended before this case: it was ended with SIGTERM"


def test_cases_that_were_skipped_say_why(ranks: Ranks) -> None:
    ranks.do(1, 0, outcome=Outcome.HANG)
    ranks.writers[1].skip("process 9 did not end")
    ranks.writers[1].end()
    run = ranks.read(code=0)
    assert run.records[(0, 1)].outcome is Outcome.HANG
    assert run.records[(2, 1)].message == "the rank did not run this case: process 9 did not end"


def test_a_pass_broken_off_loses_the_case_it_was_at(ranks: Ranks) -> None:
    for rank in (0, 1):
        for round in range(3):
            ranks.do(rank, 0, 1, 2, round=round)
    ranks.writers[0].end()
    ranks.do(1, 0, round=3)
    ranks.writers[1].begin(1, round=3)
    run = ranks.read(code=0)
    lost = {key for key, record in run.records.items() if record.outcome is Outcome.LOST}
    assert lost == {(1, 1)} and run.records[(1, 1)].message == "the rank ended while this case ran, in pass 4"
    assert (run.tallies[(0, 1)].runs, run.tallies[(1, 1)].runs) == (4, 3)


def test_a_pass_broken_off_hides_no_failure(ranks: Ranks) -> None:
    ranks.do(1, 0, 1, 2, outcome=Outcome.MISMATCH)
    ranks.writers[1].begin(1, round=1)
    run = ranks.read()
    assert run.records[(1, 1)].outcome is Outcome.MISMATCH
    assert run.tallies[(1, 1)].failed == 1


def test_of_several_passes_the_first_failure_counts_and_all_are_counted(ranks: Ranks) -> None:
    for round, outcome in enumerate((Outcome.PASS, Outcome.MISMATCH, Outcome.PASS, Outcome.CRASH)):
        ranks.do(1, 0, round=round, outcome=outcome)
    run = ranks.read()
    assert (run.records[(0, 1)].outcome, run.records[(0, 1)].round) == (Outcome.MISMATCH, 1)
    assert (run.tallies[(0, 1)].runs, run.tallies[(0, 1)].failed) == (4, 2)


def test_of_passes_that_were_right_the_first_is_kept(ranks: Ranks) -> None:
    for round in range(3):
        ranks.do(1, 0, round=round)
    assert ranks.read().records[(0, 1)].round == 0
