"""Which failed cases are tried again, in which order, and for how long."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.diagnose.experiment_list import EXPERIMENTS, REPEATS
from gpucheck.diagnose.strategy import ALONE as ALONE_FIRST
from gpucheck.model.plan import ExpectedFailure, Plan
from gpucheck.model.record import Launch, Outcome, Record, Underway, Violation
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.worker.supervisor import judging
from gpucheck.worker.supervisor.experiment_attempts import LACKING
from gpucheck.worker.supervisor.experiments import MOST_CASES, PIN_SECONDS, SPOILING, Experiments, representatives
from tests.conftest import Synthetic, make_mismatch

RIGHT = {"outcome": Outcome.PASS, "mismatches": [], "digests": {"y": "right"}}
WRONG = {"outcome": Outcome.MISMATCH, "mismatches": [make_mismatch()], "digests": {"y": "bad"}, "inputs": "i"}


@dataclass
class FakeRank:
    """A runner, a writer and a node that take down what they are asked for."""

    answers: dict[str, Any] = field(default_factory=dict)  # experiment -> what its records say, or makes it of a count
    quiet: bool = True  # whether the other ranks come to rest
    same: bool = False  # whether all ranks gave the same bits
    clean: set[int] = field(default_factory=set)  # ranks that got every case right
    taken: set[str] = field(default_factory=set)  # tasks that a rank has claimed
    earlier: tuple[int, ...] = ()  # steps that the process of the failure ran before it
    spoilt: Callable[[tuple[int, ...]], bool] = lambda after: False  # by other steps before it
    replaced: tuple[int, ...] = ()  # processes of a history, by number, that a case before ended: another runs the case
    stuck: str = ""
    seconds: float = 0.0  # that each attempt takes
    local_rank: int = 1
    local_ranks: int = 2
    files: None = None
    now: float = 0.0  # on the clock
    ran: list[tuple[int, str, str]] = field(default_factory=list)
    partners: list[int | None] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    known: list[Any] = field(default_factory=list)  # digests after which one call is enough
    events: list[str] = field(default_factory=list)
    processes: list[tuple[Any, list[int]]] = field(default_factory=list)  # what each is set up for, and its steps
    _before: list[int] = field(default_factory=list)  # steps in the process at hand
    _setup: Any = None  # of the process at hand

    @property
    def node(self) -> FakeRank:
        return self

    child = node

    def run(
        self,
        number: int,
        step: Any,
        name: str,
        *,
        deadline: float | None = None,
        partner: int | None = None,
        own: bool = False,
        known: Any = None,
    ) -> Any:
        setup = (name, step.conditions.lifelong)
        if setup != self._setup:
            self.processes.append((setup, []))
            self._setup = setup
        self.processes[-1][1].append(number)
        if own and name == "history":
            self._before.append(number)
            return SimpleNamespace(reply=True)
        self.ran.append((number, name, step.conditions.words))
        self.partners.append(partner)
        self.deadlines.append(deadline)
        self.known.append(known)
        self.now += self.seconds
        known = {"outcome": Outcome.MISMATCH, **WRONG}
        answer = self.answers.get(name, {})
        changes = answer(self.names.count(name)) if callable(answer) else answer
        if name == "history":
            replaced = self.names.count(name) in self.replaced
            spoilt = self.spoilt(tuple(self._before)) and not replaced
            changes = {**({} if spoilt else RIGHT), "before": 0 if replaced else len(self._before)}
        return Record(number, "c", 1, experiment=name, asked=step.conditions.repeat, **{**known, **changes})

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.ran]

    def before(self, record: Record) -> tuple[int, ...]:
        return self.earlier

    def forget(self, attempt: Any) -> None:
        self.events.append("forget")

    def retire(self) -> None:
        self._before, self._setup = [], None
        self.events.append("retire")

    def posted(self, word: str, rank: int) -> bool:
        return word.endswith("-right") and rank in self.clean

    def all_posted(self, word: str) -> bool:
        return self.same

    def claim(self, task: str) -> bool:
        number, _, name = task.split("-", 2)
        name = name if number == "0" else task
        free = name not in self.taken
        self.taken.add(name)
        return free

    @contextmanager
    def alone(self, seconds: float) -> Iterator[bool]:
        assert seconds > 0
        self.events.append("alone")
        yield self.quiet

    def leave(self) -> None:
        self.events.append("leave")

    def begin(self, number: int, name: str) -> None:
        self.events.append(f"begin {number} {name}")

    def result(self, record: Any) -> None:
        self.events.append(f"result {record.experiment}")


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "finished", lambda files, attempt: attempt)


def work(fake: FakeRank, plan: Plan, failed: Sequence[Record]) -> list[str]:
    runner: Any = fake
    Experiments(plan, [runner], runner, failed).work()
    return fake.names


@pytest.fixture
def plan(synthetic: Synthetic) -> Plan:
    made: Plan = synthetic.plan(cases=3, ranks=2, device="cpu", experiments=30.0)
    return made


@pytest.fixture
def wrong(synthetic: Synthetic, plan: Plan) -> Callable[..., Record]:
    """A record of the step that is wrong every time with the same bits."""

    def make(step: int = 0, **changes: Any) -> Record:
        made: Record = synthetic.record(plan, step, 1, Outcome.MISMATCH, **{"digests": {"y": "bad"}, **changes})
        return made

    return make


ALONE = ["repeat"] * REPEATS
SWAPPED = ["other rank", "other device"]


def test_what_is_wrong_every_time_is_tried_once_under_each_condition(plan: Plan, wrong: Any) -> None:
    fake = FakeRank()
    tried = work(fake, plan, [wrong(2), wrong(0)])
    assert tried == [*ALONE * 2, *["other rank"] * 2, *["other device"] * 2, "alone", "alone"]
    assert [number for number, *_ in fake.ran][::REPEATS][:2] == [0, 2], "no case waits for all the answers to another"
    assert fake.events[:3] == ["retire", "begin 0 repeat", "result repeat"], "each has a process of its own"
    assert fake.events[-1] == "leave"
    first_alone = fake.events.index("alone")
    assert fake.events[first_alone - 1] == "retire", "an idle process is no company"


def test_a_condition_that_helps_is_tried_until_it_is_no_luck_and_held_against_one_more_repeat(
    plan: Plan, wrong: Any
) -> None:
    fake = FakeRank({"other rank": RIGHT})
    assert work(fake, plan, [wrong()]) == [*ALONE, *["other rank"] * 8, "repeat", "other device", "alone"]
    fake = FakeRank({"other rank": lambda count: RIGHT if count < 3 else WRONG})
    assert work(fake, plan, [wrong()]) == [*ALONE, *["other rank"] * 3, "other device", "alone"], "it was luck"


def test_all_processes_that_are_compared_make_as_many_calls(plan: Plan, wrong: Any) -> None:
    fake = FakeRank()
    work(fake, plan, [wrong()])
    often = [words for _, _, words in fake.ran]
    assert often[0] == "x8", "the first shows how calls differ"
    assert {words.split(", ")[-1] for words in often[1:]} == {"x4"}
    fake = FakeRank({"repeat": {"outcome": Outcome.CRASH, "mismatches": []}, "alone": RIGHT})
    work(fake, plan, [replace(wrong(mismatches=[]), outcome=Outcome.CRASH)])
    assert {words.split(", ")[-1] for _, _, words in fake.ran} == {"x8"}, "nobody knows which call it was"


def test_ranks_swap_with_those_that_got_the_case_right(plan: Plan, wrong: Any) -> None:
    def lenders(clean: set[int]) -> list[int | None]:
        lent = {"other rank": lambda count: RIGHT if count < 3 else WRONG}
        fake = FakeRank(lent, clean=clean, local_rank=2, local_ranks=4)
        work(fake, plan, [wrong()])
        return [partner for name, partner in zip(fake.names, fake.partners, strict=True) if name == "other rank"]

    assert lenders({0}) == [0, 0, 0] and lenders({1, 3}) == [3, 1, 3]
    assert lenders(set()) == [3, 0, 1], "where none is right, all others"


def test_what_fails_on_every_rank_alike_is_repeated_until_a_fault_of_most_processes_is_ruled_out(
    plan: Plan, wrong: Any
) -> None:
    fake = FakeRank(same=True)
    names = work(fake, plan, [wrong()])
    assert names.count("repeat") == 44, "2 ranks: 90 processes with the two that failed"
    assert Counter(map(str, fake.known))["{'y': 'bad'}"] == 44 - REPEATS, "one call is enough for more of the same"
    fake = FakeRank({"repeat": lambda count: RIGHT if count == REPEATS + 2 else WRONG}, same=True)
    assert work(fake, plan, [wrong()]).count("repeat") == REPEATS + 2, "each process decides: more tell no more"
    fake = FakeRank({"other rank": RIGHT}, same=True)
    assert work(fake, plan, [wrong()]).count("repeat") == REPEATS + 1, "something helps"
    tuned = {"violations": [Violation("tuning differs", "gave other bits")]}
    fake = FakeRank({"repeat": {**WRONG, **tuned}}, same=True)
    assert work(fake, plan, [wrong(**tuned)]).count("repeat") == REPEATS, "the call that was tuned shows the cause"


def test_ranks_with_the_same_wrong_bits_make_each_experiment_once(plan: Plan, wrong: Any) -> None:
    first, second, seldom = FakeRank(), FakeRank(), FakeRank()
    second.taken = seldom.taken = first.taken
    first.taken.add("other-device")  # by a third one
    assert work(first, plan, [wrong()]) == [*ALONE, "other rank", "alone"]
    assert work(second, plan, [wrong()]) == ALONE
    seldom.answers = {"repeat": lambda count: RIGHT if count == 2 else WRONG}
    assert work(seldom, plan, [wrong()])[REPEATS:] == SWAPPED, "what comes and goes each rank must see for itself"


def test_ranks_with_bits_of_their_own_make_all_of_them(plan: Plan, wrong: Any) -> None:
    taken = {"other-rank", "other-device", "alone"}
    fake = FakeRank(dict.fromkeys(["repeat", *SWAPPED, "alone"], {"digests": {}}), taken=taken)
    assert work(fake, plan, [wrong(digests={})]) == [*ALONE, *SWAPPED, "alone"], "what left no outputs is like nothing"


def test_no_failure_no_experiment(plan: Plan) -> None:
    fake = FakeRank()
    assert work(fake, plan, []) == [] and fake.events[-1] == "leave"


def test_ranks_that_never_rest_are_not_waited_for_longer_than_granted(plan: Plan, wrong: Any) -> None:
    assert "alone" not in work(FakeRank(quiet=False), plan, [wrong()])


class TestHistory:
    EARLIER = (5, 4, 3, 2, 1)  # steps, in the order in which they ran

    def history(self, fake: FakeRank, plan: Plan, record: Record) -> list[tuple[int, ...]]:
        """The other steps before the case in each process."""
        made: list[tuple[int, ...]] = []
        spoilt = fake.spoilt
        fake.earlier, fake.answers["repeat"] = self.EARLIER, RIGHT

        def note(after: tuple[int, ...]) -> bool:
            made.append(after)
            return spoilt(after)

        fake.spoilt = note
        assert set(work(fake, replace(plan, steps=plan.steps * 2), [record])) <= {"repeat", "history"}
        return made

    def test_the_case_that_spoils_it_is_found_by_halves(self, plan: Plan, wrong: Any) -> None:
        fake = FakeRank(spoilt=lambda after: 4 in after)
        made = self.history(fake, plan, wrong())
        assert made[0] == self.EARLIER and made[-1] == (4,)
        assert made.count((4,)) == SPOILING and len(made) == SPOILING + 3

    @pytest.mark.parametrize("replaced", [(1,), (2, 3), (7,)])
    def test_a_process_that_a_case_before_ended_says_nothing(
        self, plan: Plan, wrong: Any, replaced: tuple[int, ...]
    ) -> None:
        fake = FakeRank(spoilt=lambda after: 4 in after, replaced=replaced)
        made = self.history(fake, plan, wrong())
        assert fake.events.count("result history") == len(made) - len(replaced) == SPOILING + 3

    def test_calls_that_add_up_are_told_from_one_case(self, plan: Plan, wrong: Any) -> None:
        fake = FakeRank(spoilt=lambda after: len(after) >= 3)
        made = self.history(fake, plan, wrong())
        assert made[-1] == (3, 2, 1) and made.count((3, 2, 1)) == SPOILING

    def test_what_does_not_come_again_is_tried_once_with_all_of_them(self, plan: Plan, wrong: Any) -> None:
        assert self.history(FakeRank(), plan, wrong()) == [self.EARLIER]

    def test_a_case_that_fails_alone_needs_no_history(self, plan: Plan, wrong: Any) -> None:
        fake = FakeRank(earlier=self.EARLIER)
        assert "history" not in work(fake, plan, [wrong()])


@pytest.mark.parametrize(("seconds", "made"), [(0.0, 0), (25.0, 3)])
def test_the_time_granted_bounds_the_experiments(
    synthetic: Synthetic, plan: Plan, monkeypatch: pytest.MonkeyPatch, seconds: float, made: int
) -> None:
    fake = FakeRank(seconds=10.0)
    monkeypatch.setattr(
        "gpucheck.worker.supervisor.experiment_attempts.time", SimpleNamespace(monotonic=lambda: fake.now)
    )
    failed = [synthetic.record(plan, step, 1, Outcome.MISMATCH) for step in range(3)]
    assert len(work(fake, replace(plan, experiments=seconds), failed)) == made


@pytest.mark.parametrize(("seconds", "tried"), [(20.0, True), (40.0, False)])
def test_a_candidate_that_takes_longer_than_experiments_may_is_not_tried_again(
    plan: Plan, wrong: Any, monkeypatch: pytest.MonkeyPatch, *, seconds: float, tried: bool
) -> None:
    slow = wrong(seconds={"reference": seconds, "inputs": 20.0})  # which are there when it is tried again
    assert work(FakeRank(), plan, [slow]), "of the library it is"
    monkeypatch.setattr(Plan, "candidates", frozenset({plan.steps[0].case.check}))
    monkeypatch.setattr("gpucheck.worker.supervisor.candidate_calls.taken", lambda files, attempt: attempt)
    assert bool(work(FakeRank(), plan, [slow])) is tried


def test_one_case_stands_for_those_of_its_row_that_fail_alike(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=4, ranks=2, one_row=True)
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
    plan = synthetic.plan(cases=80)
    failed = [synthetic.record(plan, step, 0, Outcome.MISMATCH) for step in range(80)]
    assert [record.step for record in representatives(plan, failed)] == list(range(MOST_CASES))


@pytest.mark.parametrize(("bad", "asked"), [([3], "x10"), ([1, 2, 3, 5, 6], "x8")])
def test_what_fails_in_some_calls_only_gets_more_of_them(plan: Plan, wrong: Any, bad: list[int], asked: str) -> None:
    """So many that a failure of the rate seen so far shows in nine of ten processes."""
    fake = FakeRank()
    calls = ["b" if call in bad else "a" for call in range(8)]
    fake.answers = {"repeat": lambda count: {**WRONG, "calls": calls[count % 8 :] + ["a"], "bad_calls": bad}}
    work(fake, plan, [wrong()])
    assert [words for _, name, words in fake.ran if name == "repeat"][:3] == ["x8", asked, asked]


def test_what_did_not_come_again_is_tried_no_further(plan: Plan, wrong: Any) -> None:
    assert work(FakeRank({"repeat": RIGHT}), plan, [wrong()]) == ALONE


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.HARNESS])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_process_that_lacked_the_memory_of_others_is_made_again(
    plan: Plan, wrong: Any, outcome: Outcome, times: int
) -> None:
    """A few times: then it counts as one that said nothing."""
    lacking = {"outcome": outcome, "mismatches": [], "digests": {}, "message": "CUDA error: out of memory"}
    fake = FakeRank(answers={"other device": lambda count: lacking if count <= times else WRONG})
    work(fake, plan, [wrong()])
    steady = FakeRank()
    work(steady, plan, [wrong()])
    assert _results(fake) == _results(steady) and fake.names.count("other device") == min(times + 1, LACKING)


def test_a_case_that_lacks_memory_is_not_made_again_for_that(plan: Plan, wrong: Any) -> None:
    lacking: Any = {"outcome": Outcome.ERROR, "mismatches": [], "digests": {}, "message": "CUDA error: out of memory"}
    fake = FakeRank(answers=dict.fromkeys([*EXPERIMENTS], lacking))
    work(fake, plan, [replace(wrong(), **lacking)])
    assert fake.names.count("other device") == 1


def test_what_is_explained_is_tried_no_further(plan: Plan, wrong: Any) -> None:
    fake = FakeRank()
    step = replace(plan.steps[0], conditions=replace(plan.steps[0].conditions, process_group="initialised"))
    fake.answers = {"no group": RIGHT}
    tried = work(fake, replace(plan, steps=(step,)), [wrong()])
    assert tried == [*ALONE, *["no group"] * 8, "repeat"]


def test_an_access_outside_is_asked_nothing_that_cannot_change_what_is_said_of_it(plan: Plan, wrong: Any) -> None:
    read = {"violations": [Violation("passes differ", "it is read outside of the uint8 tensor of shape (2, 3)")]}
    group = replace(plan.steps[0], conditions=replace(plan.steps[0].conditions, process_group="initialised"))

    def tried(step: Any, **changes: Any) -> list[str]:
        fake = FakeRank(dict.fromkeys(EXPERIMENTS, read))
        return work(fake, replace(plan, steps=(step,)), [wrong(**read, **changes)])

    assert tried(plan.steps[0]) == ["repeat"] * 2, "whether it follows the fill again"
    assert tried(group) == [*ALONE, "no group"]
    launch = Launch("k", 1, 1, ["cuda:1"], 7, "h", "sm_90", 0, 4, [1])
    assert "alone" in tried(group, launches=[launch], stream=0), "it may not have waited for its inputs"


def test_only_what_fails_every_time_can_be_disturbed_by_others(plan: Plan, wrong: Any) -> None:
    fake = FakeRank({"repeat": lambda count: RIGHT if count == 2 else WRONG})
    assert "alone" not in work(fake, plan, [wrong()])


def test_what_has_no_place_is_pinned_first_and_once(synthetic: Synthetic, plan: Plan) -> None:
    """Every case, not only one of a row: each may end in another kernel."""
    fake, gpus = FakeRank(), synthetic.plan(cases=3, ranks=2, one_row=True, experiments=30.0)
    launched = Underway("k", "m.py:1", 2)
    failed = [
        synthetic.record(gpus, 0, 1, Outcome.HANG, underway=launched),
        synthetic.record(gpus, 1, 1, Outcome.CRASH, sticky=True),
        synthetic.record(gpus, 2, 1, Outcome.CRASH, sticky=True),
    ]
    work(fake, gpus, failed)
    assert fake.ran[:3] == [(number, "synchronised", "synchronised") for number in (1, 2, 0)], "hangs cost most"
    assert fake.deadlines[:3] == [PIN_SECONDS] * 3 and fake.deadlines[3:] == [None] * len(fake.ran[3:])
    assert len([1 for number, name, _ in fake.ran if (number, name) == (1, "synchronised")]) == 1


@pytest.mark.parametrize("change", ["cpu", "debug", "host", "no time"])
def test_what_has_a_place_already_is_not_pinned(synthetic: Synthetic, plan: Plan, change: str) -> None:
    fake = FakeRank()
    changes: dict[str, Any] = {"debug": {"debug": True}, "no time": {"experiments": 0.0}, "cpu": {"device": "cpu"}}
    gpus = replace(plan, **{"device": "cuda", **changes.get(change, {})})
    underway = None if change == "host" else Underway("k", "", 1)
    work(fake, gpus, [synthetic.record(gpus, 0, 1, Outcome.HANG, underway=underway)])
    assert "synchronised" not in [name for _, name, _ in fake.ran]


def test_a_rank_that_is_stuck_tries_nothing(synthetic: Synthetic, plan: Plan) -> None:
    fake = FakeRank(stuck="process 7 did not end")
    assert work(fake, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH)]) == []


def _results(fake: FakeRank) -> Counter[str]:
    """How many answers of each experiment were written down."""
    return Counter(event.removeprefix("result ") for event in fake.events if event.startswith("result "))


class TestAtOnce:
    """Several processes of a rank."""

    @pytest.fixture
    def gpu(self, synthetic: Synthetic) -> Plan:
        made: Plan = synthetic.plan(cases=3, ranks=1, one_row=True, experiments=30.0)
        return made

    @pytest.fixture
    def alike(self, synthetic: Synthetic, gpu: Plan) -> list[Record]:
        """Of the only rank: two cases that fail alike and one that fails in another way."""
        bits: dict[str, Any] = {"digests": {"y": "bad"}}
        made = [synthetic.record(gpu, step, 0, Outcome.MISMATCH, **bits) for step in range(3)]
        return [*made[:2], replace(made[2], violations=[Violation("guard", "x")])]

    def work(
        self,
        plan: Plan,
        failed: Sequence[Record],
        meet: Callable[[int, str], object] = lambda running, name: None,
        count: int = 4,
        **changes: Any,
    ) -> list[FakeRank]:
        """Who ran what.

        Args:
            meet: called while a process runs, with how many run and what for.
            count: processes at once.
            changes: of each :class:`FakeRank`.
        """
        fakes = [FakeRank(**changes) for _ in range(count)]
        running, lock = [0], threading.Lock()

        def run(fake: FakeRank, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with lock:
                running[0] += 1
                made, now = real(*args, **kwargs), running[0]
            meet(now, args[2])
            with lock:
                running[0] -= 1
            return made

        for fake in fakes:
            fake.taken, fake.ran, fake.processes = fakes[0].taken, fakes[0].ran, []
            fake.run = partial(run, fake, fake.run)  # type: ignore[method-assign]
        runners: Any = fakes
        Experiments(plan, runners, runners[0], failed).work()
        return fakes

    def test_they_ask_what_one_process_after_the_other_would_ask(self, plan: Plan, wrong: Any) -> None:
        one_by_one = work(FakeRank(), plan, [wrong(0), wrong(1)])
        fakes = self.work(plan, [wrong(0), wrong(1)])
        assert Counter(fakes[0].names) == Counter(one_by_one)
        assert all("retire" in fake.events[-3:] for fake in fakes), "none is left on the GPU"

    def test_all_processes_of_a_rank_work_at_the_same_time(self, plan: Plan, wrong: Any) -> None:
        together, begun = threading.Barrier(4), itertools.count()

        def meet(running: int, name: str) -> None:
            if next(begun) < 4:
                together.wait(60)

        self.work(plan, [wrong(0), wrong(1)], meet)
        assert next(begun) > 4

    def test_nobody_waits_for_an_answer_where_a_process_is_idle(self, gpu: Plan, alike: list[Record]) -> None:
        """Two ways to fail, a case that fails as another one, and what the first answers will ask for."""
        first_wave, begun = threading.Barrier(8), itertools.count()

        def meet(running: int, name: str) -> None:
            if next(begun) < 8:
                first_wave.wait(60)

        fakes = self.work(gpu, alike, meet, count=8, local_ranks=1)
        began = Counter((number, name) for number, name, _ in fakes[0].ran[:8])
        assert {(0, "repeat"), (1, "repeat"), (2, "repeat"), (0, "fresh cache"), (2, "fresh cache")} <= set(began)
        one_by_one = FakeRank(local_ranks=1)
        work(one_by_one, gpu, alike)
        assert Counter(fakes[0].ran) == Counter(one_by_one.ran), "each was asked for in the end"
        assert _results(fakes[0]) == _results(one_by_one)

    def test_what_was_begun_ahead_and_is_not_asked_for_counts_as_if_it_had_not_been(
        self, gpu: Plan, alike: list[Record]
    ) -> None:
        fakes = self.work(gpu, alike[:1], count=8, local_ranks=1, answers={"repeat": RIGHT})
        assert "fresh cache" in fakes[0].names and _results(fakes[0]) == {"repeat": REPEATS}

    def test_what_comes_and_goes_is_not_told_from_what_was_begun_ahead(self, gpu: Plan, alike: list[Record]) -> None:
        answers = {"repeat": {**WRONG, "calls": ["a", "b"], "bad_calls": [1]}}
        one_by_one = FakeRank(local_ranks=1, answers=answers)
        work(one_by_one, gpu, alike[:1])
        fakes = self.work(gpu, alike[:1], count=8, local_ranks=1, answers=answers)
        assert _results(fakes[0]) == _results(one_by_one)

    def test_a_condition_that_helps_is_tried_at_once_as_often_as_rules_out_luck(
        self, gpu: Plan, alike: list[Record]
    ) -> None:
        answers = {"visible": RIGHT}
        one_by_one = FakeRank(local_ranks=1, answers=answers)
        work(one_by_one, gpu, alike[:1])
        further, begun = one_by_one.names.count("visible") - 1, itertools.count()
        assert further > 4
        together = threading.Barrier(further)

        def meet(running: int, name: str) -> None:
            if name == "visible" and next(begun):
                together.wait(60)

        fakes = self.work(gpu, alike[:1], meet, count=8, local_ranks=1, answers=answers)
        assert _results(fakes[0]) == _results(one_by_one)

    def test_what_helped_once_by_luck_is_told_as_if_it_had_been_tried_in_turn(
        self, gpu: Plan, alike: list[Record]
    ) -> None:
        answers = {"visible": lambda count: RIGHT if count < 3 else WRONG}
        fakes = self.work(gpu, alike[:1], count=8, local_ranks=1, answers=answers)
        seen = _results(fakes[0])
        assert seen["repeat"] == REPEATS and seen["fresh cache"] == 1, "nothing is held against what did not help"

    @pytest.mark.parametrize(("name", "at_once"), [("visible", 7), ("fresh cache", 7), ("alone", 1), ("other rank", 1)])
    def test_what_needs_idle_ranks_or_borrows_from_one_is_tried_in_turn(
        self, synthetic: Synthetic, name: ExperimentName, at_once: int
    ) -> None:
        """All that is left to try of a condition that helped once, where other cases leave eight processes idle."""
        gpu = synthetic.plan(cases=1, ranks=2, experiments=30.0)
        failure = synthetic.record(gpu, 0, 1, **WRONG)
        fakes: Any = [FakeRank() for _ in range(8)]
        experiments = Experiments(gpu, fakes, fakes[0], [failure])
        tried = experiments._tried[0]
        tried[ExperimentName("repeat")] = [replace(failure, asked=4)] * REPEATS
        tried.setdefault(ExperimentName(name), [replace(failure, asked=4, **RIGHT)])
        assert experiments._sure(failure, ExperimentName(name), 8) == at_once

    def test_those_that_lend_something_take_turns(self, plan: Plan, wrong: Any) -> None:
        lent: dict[str, Any] = {"other rank": RIGHT}
        fakes = self.work(plan, [wrong()], local_rank=2, local_ranks=4, clean={1, 3}, answers=lent)
        partners = [partner for fake in fakes for partner in fake.partners if partner is not None]
        assert abs(partners.count(1) - partners.count(3)) <= 1 + 1, "and one swaps its device"

    def test_repeats_that_rule_out_a_fault_of_most_processes_fill_all_runners(self, plan: Plan, wrong: Any) -> None:
        one_by_one = FakeRank(same=True)
        work(one_by_one, plan, [wrong()])
        together, begun = threading.Barrier(4), itertools.count()

        def meet(running: int, name: str) -> None:
            if name == "repeat" and REPEATS <= next(begun) < REPEATS + 4 * 9:
                together.wait(60)

        fakes = self.work(plan, [wrong()], meet, same=True)
        assert _results(fakes[0]) == _results(one_by_one)

    @pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.HARNESS, Outcome.INAPPLICABLE])
    @pytest.mark.parametrize("at", [(1,), (2, 4), (1, 2, 3, 4, 5)], ids=str)
    def test_what_lacks_memory_beside_others_is_asked_again_by_itself(
        self, gpu: Plan, alike: list[Record], outcome: Outcome, at: tuple[int, ...]
    ) -> None:
        lacking = {"outcome": outcome, "mismatches": [], "digests": {}, "message": "CUDA out of memory. Tried 2 GiB"}
        answers = {"repeat": lambda count: lacking if count in at else WRONG}
        beside: list[int] = []
        fakes = self.work(
            gpu, alike[:1], lambda running, name: beside.append(running), count=8, local_ranks=1, answers=answers
        )
        one_by_one = FakeRank(local_ranks=1)
        work(one_by_one, gpu, alike[:1])
        assert _results(fakes[0]) == _results(one_by_one)
        assert len(beside) >= len(one_by_one.ran) + len(at) and beside[-1] == 1

    def test_what_compiles_is_begun_before_others(self, gpu: Plan, alike: list[Record]) -> None:
        fakes = self.work(gpu, alike[:1], count=2, local_ranks=1)
        assert sorted(fakes[0].names[:2]) == ["fresh cache", "repeat"]

    def test_of_ranks_with_the_same_bits_only_the_one_that_takes_it_on_makes_an_experiment(
        self, gpu: Plan, alike: list[Record]
    ) -> None:
        """Which it may do once it knows that it fails every time: until then it repeats only."""
        taken = {"fresh-cache", "visible"}
        fakes = self.work(replace(gpu, nproc=2), alike[:1], count=8, taken=taken)
        assert fakes[0].names[:REPEATS] == ["repeat"] * REPEATS
        assert not {"fresh cache", "visible"} & set(fakes[0].names) and "synchronised" in fakes[0].names

    def test_a_failure_that_comes_and_goes_is_tried_by_itself(self, plan: Plan, wrong: Any) -> None:
        at_once: list[int] = []
        self.work(plan, [wrong(0, calls=["a", "b"], bad_calls=[1])], lambda running, _: at_once.append(running))
        assert set(at_once) == {1}

    def test_no_process_group_is_joined_twice_at_once(self, plan: Plan, wrong: Any) -> None:
        group = replace(plan.steps[0].conditions, process_group="initialised")
        steps = (replace(plan.steps[0], conditions=group), *plan.steps[1:])
        experiments = Experiments(replace(plan, steps=steps), [FakeRank(), FakeRank()], FakeRank(), [wrong(0)])  # type: ignore[arg-type, list-item]
        repeat = experiments._process_for(experiments.failed[0], ExperimentName.REPEAT)
        assert not experiments._undisturbed(repeat)
        assert experiments._undisturbed(experiments._process_for(experiments.failed[0], ExperimentName.NO_GROUP))


class TestShared:
    """Cases that all ranks of a node get wrong alike, repeated further."""

    @pytest.fixture
    def cases(self, synthetic: Synthetic) -> tuple[Plan, list[Record]]:
        plan = synthetic.plan(cases=3, ranks=2, experiments=30.0)
        return plan, [synthetic.record(plan, step, 1, **WRONG) for step in range(3)]

    def further(self, fakes: Sequence[FakeRank]) -> list[list[int]]:
        """The steps of each process in which there was more than one."""
        return [steps for fake in fakes for (name, *_), steps in fake.processes if name == "repeat" and len(steps) > 1]

    @pytest.mark.parametrize(("count", "own"), [(1, ALONE_FIRST), (4, REPEATS), (16, REPEATS)])
    def test_each_process_runs_all_of_them_and_each_is_the_first_at_its_turn(
        self, cases: tuple[Plan, list[Record]], count: int, own: int
    ) -> None:
        plan, failed = cases
        fakes = [FakeRank(same=True)]
        if count == 1:
            work(fakes[0], plan, failed)
        else:
            fakes = TestAtOnce().work(plan, failed, count=count, same=True)
        further = self.further(fakes)
        assert all(sorted(steps) == [0, 1, 2] for steps in further)
        assert len(further) == 44 - own, "as many as one case needs: 2 ranks, 90 processes with those that failed"
        firsts = Counter(steps[0] for steps in further)
        assert max(firsts.values()) - min(firsts.values()) <= 1
        assert _results(fakes[0])["repeat"] == 3 * 44

    def test_those_that_need_another_process_have_one_and_no_more(self, cases: tuple[Plan, list[Record]]) -> None:
        plan, failed = cases
        first, second, third = plan.steps
        second = replace(second, conditions=replace(second.conditions, placement="visible"))
        plan = replace(plan, steps=(first, second, third))
        one = FakeRank(same=True)
        work(one, plan, failed)
        for fakes, own in (([one], ALONE_FIRST), (TestAtOnce().work(plan, failed, same=True), REPEATS)):
            assert {tuple(sorted(steps)) for steps in self.further(fakes)} == {(0, 2)}, "both are pinned"
            assert len(self.further(fakes)) == 44 - own

    def test_one_that_comes_out_otherwise_is_alone_from_then_on(self, cases: tuple[Plan, list[Record]]) -> None:
        """Each process decides anew: what other cases of it do must not be among what decides."""
        plan, failed = cases
        right = {"repeat": lambda count: RIGHT if count == 3 * REPEATS + 1 else WRONG}
        fake = FakeRank(same=True, answers=right)
        work(fake, plan, failed)
        first, *others = self.further([fake])[REPEATS - ALONE_FIRST :]
        assert all(first[0] not in steps for steps in others) and len(others) == 44 - REPEATS - 1
