"""Which failed cases are tried again, in which order, and for how long."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gpucheck.model.plan import ExpectedFailure, Plan
from gpucheck.model.record import Launch, Outcome, Record, Underway, Violation
from gpucheck.worker import judging
from gpucheck.worker.trials import MOST_CASES, PIN_SECONDS, Trials, representatives

if TYPE_CHECKING:
    from tests.conftest import Synthetic


class Bench:
    """A runner, a writer and a node that take down what they are asked for."""

    def __init__(self, *, quiet: bool = True) -> None:
        self.quiet = quiet  # whether the other ranks come to rest
        self.ran: list[tuple[int, str, str]] = []
        self.deadlines: list[float | None] = []
        self.events: list[str] = []
        self.seconds = 0.0  # each attempt takes
        self.answers: dict[str, Any] = {}
        self.node, self.store = self, None
        self.local_ranks, self.stuck = 2, ""
        self.told = False  # whether all ranks gave the same bits
        self.taken: set[str] = set()  # tasks that a rank has claimed

    def run(self, number: int, step: Any, name: str, *, deadline: float | None = None) -> Any:
        self.ran.append((number, name, step.conditions.words))
        self.deadlines.append(deadline)
        time.sleep(self.seconds)
        known = {"outcome": Outcome.MISMATCH, "wrong": 1, **self.answers.get(name, {})}
        return Record(number, "c", 1, experiment=name, **known)

    def retire(self) -> None:
        self.events.append("retire")

    def all_told(self, word: str) -> bool:
        return self.told

    def claim(self, task: str) -> bool:
        _, _, name = task.split("-", 2)
        free = name not in self.taken
        self.taken.add(name)
        return free

    @contextmanager
    def alone(self, seconds: float) -> Iterator[bool]:
        assert seconds > 0
        self.events.append("alone")
        yield self.quiet

    def rest(self) -> None:
        self.events.append("rest")

    def begin(self, number: int, name: str) -> None:
        self.events.append(f"begin {number} {name}")

    def result(self, record: Any) -> None:
        self.events.append(f"result {record.experiment}")


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "finished", lambda store, attempt: attempt)


def work(bench: Bench, plan: Plan, failed: Sequence[Record]) -> list[str]:
    runner: Any = bench
    Trials(plan, runner, runner, failed).work()
    return [name for _, name, _ in bench.ran]


@pytest.fixture
def plan(synthetic: Synthetic) -> Plan:
    made: Plan = synthetic.plan(cases=3, ranks=2, device="cpu", experiments=30.0)
    return made


def test_alone_comes_last_and_the_rank_rests_in_the_end(synthetic: Synthetic, plan: Plan) -> None:
    bench = Bench()
    failed = [synthetic.record(plan, step, 1, Outcome.MISMATCH) for step in (2, 0)]
    side = ["repeat", "repeat", "other rank", "other rank", "other device", "other device"]
    assert work(bench, plan, failed) == [*side, "alone", "alone"], "no case waits for all the answers to another"
    assert [number for number, *_ in bench.ran] == [0, 2] * 4
    assert bench.ran[0] == (0, "repeat", "x5")
    assert bench.events[:3] == ["begin 0 repeat", "result repeat", "retire"], "each is repeated in a fresh process"
    assert bench.events[7:10] == ["result other rank", "begin 2 other rank", "result other rank"]
    assert bench.events[-1] == "rest"
    first_alone = bench.events.index("alone")
    assert bench.events[first_alone - 1] == "retire", "an idle process is no company"


def test_ranks_with_the_same_wrong_bits_make_each_experiment_once(synthetic: Synthetic, plan: Plan) -> None:
    first, second, seldom = Bench(), Bench(), Bench()
    first.told = second.told = seldom.told = True
    first.answers = second.answers = {"repeat": {"wrong": 5, "repeats": 5}}
    seldom.answers = {"repeat": {"wrong": 4, "repeats": 5, "mismatches": [synthetic.mismatch()]}}
    second.taken = seldom.taken = first.taken
    first.taken.add("other-device")  # by a third one
    assert work(first, plan, [synthetic.record(plan, 0, 0, Outcome.MISMATCH)]) == ["repeat", "other rank", "alone"]
    assert work(second, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH)]) == ["repeat"]
    own = work(seldom, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH)])
    assert own == ["repeat", "other rank", "other device"], "what comes and goes each rank must see for itself"


def test_ranks_with_bits_of_their_own_make_all_of_them(synthetic: Synthetic, plan: Plan) -> None:
    bench = Bench()
    bench.taken = {"other-rank", "other-device", "alone"}
    every = ["repeat", "other rank", "other device", "alone"]
    assert work(bench, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH)]) == every
    bench, blank = Bench(), synthetic.record(plan, 0, 1, Outcome.MISMATCH, digests={})
    bench.told, bench.taken = True, set(every) | {"other-rank", "other-device"}
    assert work(bench, plan, [blank]) == every, "what left no outputs is like nothing else"


def test_no_failure_no_experiment(plan: Plan) -> None:
    bench = Bench()
    assert work(bench, plan, []) == [] and bench.events[-1] == "rest"


def test_ranks_that_never_rest_are_not_waited_for_longer_than_granted(synthetic: Synthetic, plan: Plan) -> None:
    bench = Bench(quiet=False)
    assert "alone" not in work(bench, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH)])


@pytest.mark.parametrize(("seconds", "made"), [(0.0, 0), (0.25, 3)])
def test_the_time_granted_bounds_the_experiments(synthetic: Synthetic, plan: Plan, seconds: float, made: int) -> None:
    bench = Bench()
    bench.seconds = 0.1
    failed = [synthetic.record(plan, step, 1, Outcome.MISMATCH) for step in range(3)]
    assert len(work(bench, replace(plan, experiments=seconds), failed)) == made


def test_one_case_stands_for_those_of_its_row_that_fail_alike(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=4, ranks=2)
    row = plan.steps[0].case.row
    steps = tuple(replace(step, case=replace(step.case, row=row)) for step in plan.steps)
    plan = replace(plan, steps=steps)
    failed = [
        synthetic.record(plan, 3, 1, Outcome.MISMATCH),
        synthetic.record(plan, 1, 1, Outcome.MISMATCH),
        synthetic.record(plan, 0, 1, Outcome.CRASH),
        synthetic.record(plan, 2, 1, Outcome.MISMATCH, violations=[Violation("guard", "x")]),
    ]
    assert [record.step for record in representatives(plan, failed)] == [0, 1, 2]


def test_a_failure_that_is_expected_needs_no_explanation(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2)
    plan = replace(plan, steps=(replace(plan.steps[0], expect=ExpectedFailure(ranks="others")),))
    failed = [synthetic.record(plan, 0, rank, Outcome.MISMATCH) for rank in (0, 1)]
    assert [record.rank for record in representatives(plan, failed)] == [0], "rank 0 should have been right"


def test_many_failing_rows_are_bounded(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=20)
    failed = [synthetic.record(plan, step, 0, Outcome.MISMATCH) for step in range(20)]
    assert [record.step for record in representatives(plan, failed)] == list(range(MOST_CASES))


@pytest.mark.parametrize(
    ("first", "again", "needed"),
    [
        ({"wrong": 1}, {"wrong": 5, "repeats": 5}, ("x5", "", "")),  # every time: once more tells enough
        ({"wrong": 3, "repeats": 6}, {"wrong": 5, "repeats": 10}, ("x10", "x10", "x10")),
        ({"wrong": 3, "repeats": 6}, {"wrong": 1, "repeats": 10}, ("x10", "x25", "x25")),
        ({"wrong": 1, "repeats": 900}, {"wrong": 1, "repeats": 900}, ("x200", "x200", "x200")),  # bounded
    ],
)
def test_what_fails_seldom_is_tried_more_often(
    synthetic: Synthetic, plan: Plan, first: dict[str, Any], again: dict[str, Any], needed: tuple[str, ...]
) -> None:
    """Until a failure of the rate seen so far had stayed away by luck in one of a thousand runs at most."""
    bench = Bench()
    bench.answers = {"repeat": again}
    work(bench, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH, **first)])
    often = [next((word for word in words.split(", ") if word.startswith("x")), "") for _, _, words in bench.ran]
    assert tuple(often[:3]) == needed


def test_what_did_not_come_again_is_tried_no_further(synthetic: Synthetic, plan: Plan) -> None:
    bench = Bench()
    bench.answers = {"repeat": {"outcome": Outcome.PASS, "wrong": 0, "repeats": 5}}
    assert work(bench, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH)]) == ["repeat"]


def test_what_is_explained_is_tried_no_further(synthetic: Synthetic, plan: Plan) -> None:
    bench = Bench()
    step = replace(plan.steps[0], conditions=replace(plan.steps[0].conditions, process_group="initialised"))
    bench.answers = {"repeat": {"wrong": 5, "repeats": 5}, "no group": {"outcome": Outcome.PASS, "wrong": 0}}
    tried = work(bench, replace(plan, steps=(step,)), [synthetic.record(plan, 0, 1, Outcome.MISMATCH, wrong=1)])
    assert tried == ["repeat", "no group"]


def test_an_access_outside_is_asked_nothing_that_cannot_change_what_is_said_of_it(
    synthetic: Synthetic, plan: Plan
) -> None:
    bench = Bench()
    bench.answers = {"repeat": {"wrong": 5, "repeats": 5}}
    read = [Violation("passes differ", "it is read outside of the uint8 tensor of shape (2, 3)")]
    step = replace(plan.steps[0], conditions=replace(plan.steps[0].conditions, process_group="initialised"))
    failed = synthetic.record(plan, 0, 1, Outcome.MISMATCH, violations=read)
    assert work(bench, replace(plan, steps=(step,)), [failed]) == ["repeat", "no group"]
    launch = Launch("k", 1, 1, ["cuda:1"], 7, "h", "sm_90", 0, 4, [1])
    bench, astray = Bench(), replace(failed, launches=[launch], stream=0)
    assert "alone" in work(bench, replace(plan, steps=(step,)), [astray]), "it may not have waited for its inputs"


def test_only_what_fails_every_time_can_be_disturbed_by_others(synthetic: Synthetic, plan: Plan) -> None:
    bench = Bench()
    bench.answers = {"repeat": {"wrong": 3, "repeats": 5, "distinct": 3}}
    assert "alone" not in work(bench, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH)])


def test_what_has_no_place_is_pinned_first_and_once(synthetic: Synthetic, plan: Plan) -> None:
    """Every case, not only one of a row: each may end in another kernel."""
    bench, gpus = Bench(), replace(plan, device="cuda", case_timeout=60.0)
    row = gpus.steps[0].case.row
    gpus = replace(gpus, steps=tuple(replace(step, case=replace(step.case, row=row)) for step in gpus.steps))
    launched = Underway("k", "m.py:1", 2)
    failed = [
        synthetic.record(gpus, 0, 1, Outcome.HANG, underway=launched),
        synthetic.record(gpus, 1, 1, Outcome.CRASH, sticky=True),
        synthetic.record(gpus, 2, 1, Outcome.CRASH, sticky=True),
    ]
    work(bench, gpus, failed)
    assert bench.ran[:3] == [(number, "synchronised", "synchronised") for number in (1, 2, 0)], "hangs cost most"
    assert bench.deadlines[:3] == [PIN_SECONDS] * 3 and bench.deadlines[3:] == [None] * len(bench.ran[3:])
    assert len([1 for number, name, _ in bench.ran if (number, name) == (1, "synchronised")]) == 1


@pytest.mark.parametrize("change", ["cpu", "debug", "host", "no time"])
def test_what_has_a_place_already_is_not_pinned(synthetic: Synthetic, plan: Plan, change: str) -> None:
    bench = Bench()
    changes: dict[str, Any] = {"debug": {"debug": True}, "no time": {"experiments": 0.0}, "cpu": {"device": "cpu"}}
    gpus = replace(plan, **{"device": "cuda", **changes.get(change, {})})
    underway = None if change == "host" else Underway("k", "", 1)
    work(bench, gpus, [synthetic.record(gpus, 0, 1, Outcome.HANG, underway=underway)])
    assert "synchronised" not in [name for _, name, _ in bench.ran]


def test_a_rank_that_is_stuck_tries_nothing(synthetic: Synthetic, plan: Plan) -> None:
    bench = Bench()
    bench.stuck = "process 7 did not end"
    assert work(bench, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH)]) == []
