"""What a supervisor asks a candidate for beside a case, and what it concludes from the answers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck.checks.base import Allowed, CandidateCheck
from gpucheck.model.record import Outcome, Violation
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Expected
from gpucheck.verify.judge import judge
from gpucheck.worker import further_inputs, parcels, taken_outputs
from gpucheck.worker.device.reference_process import ReferenceProcess
from gpucheck.worker.protocol import (
    AFTER,
    BASELINE,
    CHANGED,
    DELAYED,
    FETCH,
    GO,
    IDLE,
    PLACE,
    RUN,
    Ask,
    Draw,
    Reply,
    Taken,
)
from gpucheck.worker.sealed_inputs import bit_sum, seal
from gpucheck.worker.supervisor import candidate_calls, judging
from gpucheck.worker.supervisor.attempt import ANSWER, Attempt, Doubt
from gpucheck.worker.supervisor.candidate_calls import SAMPLED, TIMED, UNHELD, Answer, Examination, Seen
from tests.conftest import Synthetic
from tests.worker.device.test_reference_process import SETUP, FakeDesk


def answer(value: int, launched: int = 1, **changes: Any) -> Answer:
    """The answer to inputs that are told apart by a number."""
    output = torch.full((4,), float(value))
    output[0] = 0.5
    taken = Taken(f"d{value}", value, varies=True, values={"out": output})
    return Answer(taken, ("twice",) * bool(launched), launched=launched, **changes)


HONEST = Seen(before=answer(1), first=answer(2), again=answer(2), moved=answer(1), kept=answer(8), idle=answer(8))
HONEST.differing = lambda outputs, others: taken_outputs.differing(outputs.values or {}, others.values or {})
HONEST.changed, HONEST.late, HONEST.prompt = answer(9), answer(2), answer(2)


def kinds(seen: Seen) -> list[str]:
    return [violation.kind for violation in seen.violations()]


def test_an_honest_candidate_is_blamed_for_nothing() -> None:
    assert HONEST.violations() == []
    first, *others = HONEST.doubts()
    assert first.outputs is HONEST.first.outputs and first.wrong, "it is what the others are compared with"
    assert [doubt.right.kind for doubt in others if doubt.right] == ["idle", "idle"]
    assert kinds(replace(HONEST, kept=None, idle=None, changed=None, late=None, moved=None)) == []


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"before": answer(2), "moved": answer(2)}, "cached", "bit for bit the one that other inputs got"),
        ({"moved": answer(2)}, "cached", "with other inputs in the same memory the answer is still the one before"),
        ({"again": answer(2, launched=0)}, "cached", "second call with equal inputs launches no kernel: its answer is"),
        ({"kept": answer(2)}, "cached", "a later call with equal inputs needs no kernel: its answer is kept from"),
        ({"idle": answer(2), "kept": answer(2)}, "idle", "stays the same when its kernels do nothing: twice"),
        ({"changed": answer(2)}, "idle", "stays the same when its kernels leave other values behind: twice"),
        (
            {"late": answer(7, elsewhere=("twice launched on stream 7, the caller's is 0",))},
            "order",
            "twice launched on stream 7, the caller's is 0, and nobody waits: 3 of 4 elements differ when inputs are",
        ),
        (
            {"prompt": answer(7), "late": answer(7)},
            "order",
            "work of the call goes elsewhere, and nobody waits: 3 of 4 elements differ when outputs are read right",
        ),
    ],
)
def test_a_sign_of_misconduct_is_told_by_its_kind(changes: dict[str, Answer], kind: str, words: str) -> None:
    (violation,) = replace(HONEST, **changes).violations()
    assert violation.kind == kind and words in violation.detail


def test_outputs_with_other_bits_in_each_call_are_held_against_the_reference() -> None:
    """Sums in no fixed order differ in their last bits, which no digest tells from a wrong answer."""
    again, further, late = answer(3), answer(4), answer(5)
    unsteady = replace(HONEST, again=again, further=[further], late=late, prompt=None)
    assert unsteady.unsteady and not HONEST.unsteady and unsteady.violations() == []
    doubted = [(doubt.outputs.digest, doubt.wrong.kind) for doubt in unsteady.doubts() if doubt.wrong]
    repeats = [("d3", "repeats differ"), ("d4", "repeats differ")]
    assert doubted == [("d2", "calls differ"), *repeats, ("d5", "order")]


def test_no_launch_at_all_is_for_the_launch_record_to_tell() -> None:
    torchs = Seen(answer(1, 0), answer(2, 0), answer(2, 0), kept=answer(2, 0), idle=answer(2, 0), changed=answer(2, 0))
    assert torchs.violations() == [] and all(doubt.right is None for doubt in torchs.doubts())


def test_weights_that_a_kernel_laid_out_in_the_first_call_are_no_kept_answer() -> None:
    laid = Seen(answer(1), answer(2, 0), answer(2, 0), moved=answer(1, 0), kept=answer(2, 0), idle=answer(8))
    assert laid.violations() == []


def test_an_answer_that_is_one_value_everywhere_shows_nothing() -> None:
    nothing = {"out": torch.full((4,), float("nan"))}
    nan = Answer(taken_outputs.look(nothing, dict, set, str)[1], ("twice",), launched=1)
    assert Seen(nan, nan, nan, nan, kept=nan, idle=nan, changed=nan).violations() == []


class Twice(CandidateCheck):
    """Twice the input, of which there are as many draws as seeds."""

    def inputs(self, case: Any, generator: Any) -> dict[str, Any]:
        return {"state.weight": torch.ones(2), **self.fresh_inputs(case, case.input_seed)}

    def fresh_inputs(self, case: Any, seed: int, device: str = "cpu") -> dict[str, Any]:
        if case and seed == case.input_seed:
            return {"input0": torch.arange(5.0)}
        return {"input0": self.drawn(torch.Generator().manual_seed(seed))}

    def drawn(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(5, generator=generator)

    def large(self, case: Any, device: str) -> int:
        return 100

    def reference(self, case: Any, inputs: dict[str, Any]) -> dict[str, Expected]:
        return {"out": Expected(Estimate(inputs["input0"].double() * 2, None, 0.5), torch.float32)}

    def reference_on(self, case: Any, inputs: Any, device: str, *, large: bool) -> Any:
        return self.reference(case, inputs), ""

    launch = kernels = axes = call = baseline = None  # type: ignore[assignment]


class Positive(Twice):
    def drawn(self, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(64, generator=generator)


Behave = Callable[[Any, Any, int], Any]


@dataclass
class Processes:
    """Stands in for a runner: each process calls ``behave`` with the request, the input and the number of the call."""

    folder: Path
    plan: Any
    behave: Behave
    asked: list[tuple[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    placed: Any = None  # the sealed input of a timed call
    made: Any = None  # its outputs
    change: Callable[[Attempt], Any] = lambda attempt: None  # what becomes of the outputs of a timed call in the end
    waited: float = 0.0  # beyond the time that a process of a candidate tells
    desk: FakeDesk | None = None  # where outputs are taken that lie in shared memory
    box: parcels.Box | None = None  # which they are written to
    settled: int = 0  # calls that were made before processes that start might disturb a time

    @property
    def files(self) -> Any:
        return SimpleNamespace(folder=self.folder, given=lambda key, case: Twice().inputs(case, None), desk=self.desk)

    def save(self, outputs: dict[str, Any], attempt: Attempt) -> None:
        parcels.save(outputs, attempt.outputs, self.box)

    @property
    def child(self) -> Processes:
        return self

    def retire(self) -> None:
        self.counts.clear()

    def settle(self) -> None:
        self.settled = len(self.asked)

    def ask(self, attempt: Attempt) -> Attempt:
        assert attempt.call is not None
        reply = Reply("ran", launched=1, launches=[{"kernel": "twice", "stream": 0}], stream=0)
        if attempt.call.step == FETCH:
            self.save(self.made, attempt)
            self.change(attempt)
            return replace(attempt, reply=reply)
        given = self.placed
        if attempt.call.inputs:
            read = parcels.load(attempt.call.inputs, {}, torch.device("cpu"), mapped=False)
            given = {name: value.clone() for name, value in read.items()}
        if attempt.call.step == PLACE:
            self.placed = given
            return replace(attempt, reply=reply)
        self.asked.append((attempt.process, attempt.call))
        number = self.counts[attempt.process] = self.counts.get(attempt.process, 0) + 1
        (x,) = (seal(given, attempt.call.key) if attempt.call.step == GO else given).values()
        out = self.behave(attempt, x, number)
        if isinstance(out, Outcome):
            return replace(attempt, record=replace(attempt.record, outcome=out, message="ended with exit code 0"))
        if isinstance(out, str):
            return replace(attempt, reply=Reply("error", out))
        told = reply.timings["call"] = 0.002 if attempt.role == BASELINE else 0.001
        waited = {ANSWER: told + (0.0001 if attempt.role == BASELINE else self.waited)}
        reply.bit_sum = bit_sum({"out": out})
        after = {AFTER + "input0": x} if attempt.call.compared else {}
        self.made = {"out": out}
        if attempt.call.step != GO:
            self.save({"out": out, **after}, attempt)
        return replace(attempt, reply=reply, record=replace(attempt.record, seconds=waited))


def twice(attempt: Attempt, x: Any, number: int) -> Any:
    assert attempt.call is not None
    return {RUN: x * 2, DELAYED: x * 2, IDLE: x * float("nan"), CHANGED: x * -3}[attempt.call.launches]


@pytest.fixture(params=["files", "shared memory"])
def examine(
    request: pytest.FixtureRequest, tmp_path: Path, synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Examines what behaves in some way; how its inputs and outputs get from one process to another is no matter."""

    def examine(
        behave: Behave, device: str = "cpu", draw: Twice | None = None, **process: Any
    ) -> tuple[Any, Processes]:
        plan = synthetic.plan(cases=1, device=device)
        monkeypatch.setattr(candidate_calls.checks, "load", lambda name: draw or Twice())
        processes = Processes(tmp_path / "run", plan, behave, **process)
        processes.folder.mkdir(exist_ok=True)
        outputs = str(processes.folder / "0.outputs0")
        attempt = Attempt(plan.steps[0], "0", synthetic.record(plan, 0, 0), outputs, Reply("ran"))
        if request.param == "shared memory":
            processes.desk = FakeDesk(ReferenceProcess(SETUP))
            case = plan.steps[0].case
            placed = processes.desk.ask(Ask.PLACE, case, str(tmp_path / "0.inputs"), folder=str(tmp_path))
            processes.box = parcels.open_box(placed.box, torch.device("cpu"), written=True)
            attempt = replace(attempt, taken="of the case")
        runner: Any = processes
        return Examination(runner, attempt).examine(), processes

    return examine


def inputs_of(doubt: Doubt, draw: Twice) -> Any:
    case: Any = None
    assert doubt.inputs
    return further_inputs.drawn(draw, case, doubt.inputs).inputs["input0"]


def wrong(doubt: Doubt, processes: Processes, draw: Twice | None = None) -> bool:
    """Whether outputs in doubt are wrong, by whoever has taken them."""
    check, case = draw or Twice(), processes.plan.steps[0].case
    if processes.desk:
        assert doubt.outputs.values is None, "nothing of them comes to the supervisor"
        asked = processes.desk.ask(Ask.JUDGE, case, outputs=(doubt.outputs.digest,), draw=doubt.inputs)
        return bool(asked.judged.mismatches)
    assert doubt.outputs.values
    expected = check.reference(case, {"input0": inputs_of(doubt, check)})
    return bool(judge(doubt.outputs.values, expected, {}).mismatches)


def test_timed_calls_have_inputs_that_no_call_had_and_processes_hold_one_thing(examine: Any) -> None:
    drawn: list[tuple[str, tuple[float, ...]]] = []

    def behave(attempt: Attempt, x: Any, number: int) -> Any:
        drawn.append((attempt.process, tuple(x.tolist())))
        return twice(attempt, x, number)

    examined, processes = examine(behave, "cuda")
    assert examined.violations == () and examined.failed is None
    assert examined.timings == {"call": 0.001, "candidate": 0.001, "reference": 0.002}
    calls = [call for name, call in processes.asked if name == "calls"]
    inputs = [x for name, x in drawn if name == "calls"]
    timed = [x for x, call in zip(inputs, calls, strict=True) if call.step]
    untimed = {x for x, call in zip(inputs, calls, strict=True) if not call.step}
    assert len(set(timed)) == UNHELD + TIMED["cuda"] == len(timed) - SAMPLED and not untimed & set(timed)
    assert [x for x, after in pairwise(timed) if x == after] == [x for x in timed if timed.count(x) == 2][::2]
    assert {x for name, x in drawn if name == "fresh calls"} <= set(timed)
    assert [name for name, _ in processes.asked if name == "plain calls"] == ["plain calls"] * len(set(timed))
    assert [
        sum(not call.held for part, call in processes.asked if part == name) for name in ("calls", "plain calls")
    ] == [UNHELD] * 2
    assert [call.launches for name, call in processes.asked if name == "idle calls"] == [IDLE, CHANGED]
    assert [call.step for name, call in processes.asked].index(GO) >= processes.settled > 0, "none starts meanwhile"
    stressed = [(call.late, call.prompt, call.launches) for call in calls if call.late or call.prompt]
    assert stressed == [(True, False, RUN), (False, True, DELAYED)], "one delay must not hide what the other shows"
    assert list(processes.folder.iterdir()) == [], "no answer lies where another process finds it"


@pytest.mark.parametrize(
    ("device", "triton", "started"),
    [
        ("cuda", True, [("calls", RUN), ("idle calls", IDLE), ("plain calls", RUN), ("fresh calls", RUN)]),
        ("cuda", False, [("calls", RUN), ("plain calls", RUN), ("fresh calls", RUN)]),
        ("cpu", True, [("calls", RUN), ("idle calls", IDLE), ("fresh calls", RUN)]),
    ],
)
def test_processes_that_further_calls_need_are_wanted_ahead(
    synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch, device: str, triton: bool, started: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(candidate_calls.checks, "load", lambda name: Twice())
    monkeypatch.setattr(Twice, "declares_triton", triton)
    plan, wanted = synthetic.plan(cases=1, device=device), list[Any]()
    setups = SimpleNamespace(of=lambda attempt: (attempt.process, attempt.launches))
    runner: Any = SimpleNamespace(plan=plan, setups=setups, child=SimpleNamespace(want=wanted.extend))
    then: Any = "the next trial"
    attempt = Attempt(plan.steps[0], "0", synthetic.record(plan, 0, 0), "0.outputs0")
    candidate_calls.want_processes(runner, attempt, [then])
    assert wanted == [*started, then]


def test_an_answer_kept_while_calls_are_timed_is_in_doubt_whatever_call_it_begins_with(examine: Any) -> None:
    for honest in range(5, 12):
        last: dict[str, Any] = {}

        def behave(attempt: Attempt, x: Any, number: int, honest: int = honest, last: Any = last) -> Any:
            if number <= honest:
                last[attempt.process] = x
            return twice(attempt, last[attempt.process], number)

        examined, processes = examine(behave)
        doubts: tuple[Doubt, ...] = examined.doubts
        kept = [doubt for doubt in doubts if doubt.wrong and doubt.wrong.kind == "cached"]
        assert kept and all("the answer of an earlier call" in doubt.wrong.detail for doubt in kept if doubt.wrong)
        assert all(wrong(doubt, processes) for doubt in kept)


def test_work_left_out_while_calls_are_timed_is_in_doubt(examine: Any) -> None:
    examined, _ = examine(lambda attempt, x, number: twice(attempt, x, number) + (number > 5) * number)
    assert {doubt.wrong.kind for doubt in examined.doubts if doubt.inputs and not doubt.optional} == {"repeats differ"}
    examined, _ = examine(lambda attempt, x, number: twice(attempt, x, number) + (number > 5))
    assert {doubt.wrong.kind for doubt in examined.doubts if not doubt.optional and doubt.wrong} == {"calls differ"}


def test_where_calls_differ_further_ones_are_asked_for_and_each_is_held_against_the_reference(examine: Any) -> None:
    examined, processes = examine(lambda attempt, x, number: twice(attempt, x, number) + number * 1e-5)
    assert examined.unsteady and not examined.violations
    own = [doubt for doubt in examined.doubts if doubt.wrong and not doubt.inputs]
    assert [doubt.wrong.kind for doubt in own].count("repeats differ") == 1 + candidate_calls.FURTHER
    assert not examine(twice)[0].unsteady


def test_one_timed_call_is_always_held_against_its_reference(examine: Any) -> None:
    for behave in (twice, lambda attempt, x, number: twice(attempt, x, number) + (x.tolist() != [0, 1, 2, 3, 4])):
        examined, processes = examine(behave)
        (doubt,) = [doubt for doubt in examined.doubts if doubt.inputs and not doubt.optional]
        assert doubt.wrong and "got a wrong answer" in doubt.wrong.detail
        assert wrong(doubt, processes) is (behave is not twice), "all processes answer as this one does"


def test_inputs_drawn_otherwise_are_asked_for_and_held_against_their_own_reference(examine: Any) -> None:
    examined, processes = examine(lambda attempt, x, number: twice(attempt, x.abs(), number), draw=Positive())
    (doubt,) = [doubt for doubt in examined.doubts if doubt.optional]
    assert float(inputs_of(doubt, Positive()).min()) < 0 and wrong(doubt, processes, Positive())
    assert doubt.wrong.kind == "statistics" and "multiplied by -0." in doubt.wrong.detail


def test_inputs_that_a_call_changed_are_told_by_the_supervisor_unless_the_plain_code_changes_them_too(
    examine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zeroes(attempt: Attempt, x: Any, number: int) -> Any:
        out = twice(attempt, x, number)
        x[1:3] = 0
        return out

    (violation,) = examine(zeroes)[0].violations
    assert violation == Violation(violation.kind, "the call changed input0: 2 of 5 elements")
    assert violation.kind == "inputs"
    monkeypatch.setattr(Twice, "allowed", lambda *_: Allowed(writes=frozenset({"input0"})))
    assert examine(zeroes)[0].violations == ()


def test_a_time_that_the_clock_outside_of_the_process_contradicts_does_not_count(examine: Any) -> None:
    for waited, seconds, reference in ((0.004, 0.001, 0.002), (0.5, 0.501, 0.0021)):
        examined, _ = examine(twice, "cuda", waited=waited)
        assert examined.timings["candidate"] == pytest.approx(seconds)
        assert examined.timings["reference"] == pytest.approx(reference)
        outside = "its process says 1.000 ms a call: times are those of the clock outside of it"
        assert examined.note == (outside if waited > 0.1 else "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda attempt: torch.save({"out": torch.ones(5)}, attempt.outputs), "are not those that it had when it said"),
        (lambda attempt: torch.save([1], attempt.outputs), "the file holds a list"),
        (lambda attempt: Path(attempt.outputs).unlink(), "outputs cannot be read: FileNotFoundError"),
        (lambda attempt: Path(attempt.outputs).write_bytes(b"no"), "outputs cannot be read: "),
    ],
)
def test_outputs_that_come_into_being_after_the_call_or_not_at_all_are_an_error(
    examine: Any, change: Callable[[Attempt], Any], words: str
) -> None:
    examined, _ = examine(twice, change=change)
    assert examined.failed.outcome is Outcome.ERROR and words in examined.failed.message


def test_a_call_that_gives_no_answer_fails_only_where_its_kernels_ran(examine: Any) -> None:
    def dies_without_kernels(attempt: Attempt, x: Any, number: int) -> Any:
        return "IndexError: 7" if attempt.call.launches in (IDLE, CHANGED) else twice(attempt, x, number)  # type: ignore[union-attr]

    examined, _ = examine(dies_without_kernels)
    assert examined.violations == () and examined.failed is None
    raising, _ = examine(lambda attempt, x, number: "ValueError: no" if number > 6 else twice(attempt, x, number))
    assert (raising.failed.outcome, raising.failed.message) == (Outcome.ERROR, "ValueError: no")


def test_a_process_that_ends_itself_where_kernels_do_nothing_is_told(examine: Any) -> None:
    for outcome in (Outcome.CRASH, Outcome.HANG):

        def breaks_off(attempt: Attempt, x: Any, number: int, outcome: Outcome = outcome) -> Any:
            return outcome if attempt.process == "idle calls" else twice(attempt, x, number)

        examined, _ = examine(breaks_off)
        (violation,) = examined.violations
        assert violation.kind == "process" and "whether its answer comes from them cannot be seen" in violation.detail
        assert examined.timings == {}


def test_doubtful_outputs_are_held_against_the_reference_of_their_own_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging.checks, "load", lambda name: Twice())
    own, draw = {"input0": torch.arange(4.0)}, Draw(7)
    other = Twice().fresh_inputs(None, 7)
    right = {"out": own["input0"] * 2}
    idle, changed, timed = (Violation(kind, kind) for kind in ("idle", "idle", "calls differ"))

    def doubt(out: Any, inputs: Draw | None = None, **found: Violation) -> Doubt:
        return Doubt(Taken("", 0, varies=True, values={"out": out}), inputs, **found)

    def shown(*doubts: Doubt, violations: tuple[Violation, ...] = ()) -> list[str]:
        examined = candidate_calls.Examined(violations, doubts)
        case: Any = SimpleNamespace(check="twice", input_seed=1)
        expected = Twice().reference(case, own)
        files: Any = SimpleNamespace(
            reference_of=lambda case, inputs, draw: Twice().reference(case, Twice().fresh_inputs(case, draw.seed))
        )
        return [each.kind for each in judging.examined_violations(examined, case, own, expected, right, files)]

    assert shown(doubt(right["out"], wrong=timed), doubt(own["input0"] * 3, right=idle)) == []
    assert shown(doubt(right["out"], right=idle), doubt(right["out"], right=changed)) == ["idle"]
    assert shown(doubt(other["input0"] * 2, draw, wrong=timed)) == []
    assert shown(doubt(own["input0"] * 2, draw, wrong=timed)) == ["calls differ"]
    assert shown(doubt(torch.zeros(3), wrong=timed), violations=(idle,)) == ["idle", "calls differ"]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("off", "looked_at"), [(0.0, True), (0.5, False)])
def test_only_a_right_answer_is_followed_by_further_calls(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, large: bool, off: float, looked_at: bool
) -> None:
    right = torch.arange(4.0)
    expected = {"out": Expected(Estimate(right.double(), torch.full((4,), 1e-3)), torch.float32)}
    torch.save({"out": right + off}, tmp_path / "outputs")
    files = SimpleNamespace(
        reference=lambda key, case: expected,
        judged=lambda case, digest: SimpleNamespace(judged=judge({"out": right + off}, expected, {})),
    )
    made = list[Any]()

    def examination(runner: Any, attempt: Attempt) -> Any:
        made.append(attempt)
        return SimpleNamespace(examine=candidate_calls.Examined)

    monkeypatch.setattr(candidate_calls, "Examination", examination)
    wanted = list[Any]()
    child = SimpleNamespace(left_behind=0, want=wanted.append, start_wanted=lambda: wanted.append("started"))
    runner: Any = SimpleNamespace(files=files, child=child, needs_room=lambda key: large)
    plan = synthetic.plan()
    attempt = Attempt(
        plan.steps[0],
        "0",
        synthetic.record(plan, 0, 0, Outcome.PASS),
        str(tmp_path / "outputs"),
        Reply("ran"),
        taken="digest" * large,
    )
    then: Any = "next"
    assert (candidate_calls.examined(runner, attempt, [then]).examined is not None) is looked_at is bool(made)
    assert wanted == [() if large else [then], "started"], "what the calls did not need is ended in any case"
