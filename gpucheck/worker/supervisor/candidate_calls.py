"""Calls that a supervisor asks a candidate for beside those of a case, and what their outputs show.

The processes that answer hold the candidate and the inputs of one call at a time. Which inputs, and whether launches
run, is chosen here; outputs are compared here, or where they were taken if they are large; what a process says of
itself decides nothing that its outputs can tell.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gpucheck import checks
from gpucheck.checks.base import CandidateCheck
from gpucheck.model.conditions import Conditions
from gpucheck.model.record import Outcome, Record, Violation
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.verify.judge import accepted
from gpucheck.worker.protocol import (
    BASELINE,
    CANDIDATE,
    CHANGED,
    DELAYED,
    FETCH,
    GO,
    IDLE,
    OWN,
    PLACE,
    RUN,
    Call,
    Draw,
    Sent,
    Taken,
    outputs_file,
)
from gpucheck.worker.sealed_inputs import KEY_BITS
from gpucheck.worker.supervisor.attempt import ANSWER, Attempt, Doubt, Examined, NoOutputs, harness_failed, read_outputs
from gpucheck.worker.supervisor.handed_over import ByFiles, BySharedMemory, HandOver

if TYPE_CHECKING:
    from gpucheck.worker.protocol import Setup
    from gpucheck.worker.supervisor.case_files import CaseFiles
    from gpucheck.worker.supervisor.child_runner import ChildRunner

UNHELD = 3  # calls among those whose time counts that are not held back: how long they take is seen from outside
TIMED = {"cuda": 12, "cpu": 7}  # calls whose time counts; on the CPU none is reported, and their outputs are looked at
FEWEST = 4
SAMPLED = 5  # taken at random, of those and the ones before, for which a fresh process must give the same answer
FURTHER = 2  # calls with the inputs of the case where two of them gave other bits: each is judged
FEW_SAMPLED = 3  # where their outputs take so much memory that no further call is timed
UNSEEN = 5e-3  # s of a call that the supervisor's clock may see beyond the device's own time, and beyond plain torch's
LARGE = 64 << 20  # bytes of a call's inputs and outputs, from which on one reference beside that of the case has to do
MOVED = 1 << 30  # bytes of inputs and outputs of the timed calls, beyond which there are fewer of them
PROCESSES = {
    "calls": (CANDIDATE, RUN),
    "idle calls": (CANDIDATE, IDLE),
    "plain calls": (BASELINE, RUN),
    "fresh calls": (CANDIDATE, RUN),
}
"""The processes that answer, in the order in which they are asked: what each runs, and what launches do there."""

NOTHING = Taken("", 0, varies=False, values={})


@dataclass(frozen=True)
class Answer:
    """The outputs of one call and how it went."""

    outputs: Taken
    launches: tuple[str, ...] = ()  # kernels that were launched
    elsewhere: tuple[str, ...] = ()  # launches on another stream than the caller's, in words
    launched: int = 0  # launches and replays of CUDA graphs
    seconds: float = 0.0  # of the GPU, as the process says
    waited: float = 0.0  # s, by the clock of this process

    @property
    def digest(self) -> str:
        return self.outputs.digest


def taken(files: CaseFiles, attempt: Attempt) -> Attempt:
    """The attempt of a candidate, with its outputs copied out of shared memory if they are large."""
    try:
        return files.take(attempt)
    except NoOutputs as error:
        record = replace(attempt.record, outcome=Outcome.ERROR, message=str(error))
        return replace(attempt, record=record, reply=None)
    except Exception as error:
        return replace(harness_failed(attempt, error), reply=None)


def want_processes(runner: ChildRunner, attempt: Attempt, then: Sequence[Setup] = ()) -> None:
    """Has the processes that :func:`examined` will ask started while the case itself is run.

    Args:
        attempt: of the case, still to be made.
        then: of the process that is needed when all have answered.
    """
    with suppress(Exception):  # the case meets that too
        check = checks.load(attempt.step.case.check)
        assert isinstance(check, CandidateCheck)
        apart = _apart(runner, attempt)
        needless = {"idle calls": not check.declares_triton, "plain calls": runner.plan.device == "cpu"}
        names = [name for name in PROCESSES if not needless.get(name)]
        runner.child.want([*(runner.setups.of(_of_process(apart, name)) for name in names), *then])


def examined(runner: ChildRunner, attempt: Attempt, then: Sequence[Setup] = ()) -> Attempt:
    """The attempt of a candidate, with what further calls of it show if its answer is right: else they tell nothing.

    Args:
        then: see :func:`want_processes`.
    """
    try:
        return _examined(runner, attempt)
    finally:
        runner.child.want(() if runner.needs_room(attempt.key) else then)
        runner.child.start_wanted()


def _examined(runner: ChildRunner, attempt: Attempt) -> Attempt:
    if attempt.reply is None or attempt.reply.status != "ran" or _wrong(runner.files, attempt):
        return attempt
    before = runner.child.left_behind
    try:
        found = Examination(runner, attempt).examine()
        left = runner.child.left_behind - before
        if left:
            words = f"{left} process{'es' * (left > 1)} lived on in a session apart when its own had ended"
            found = replace(found, violations=(*found.violations, Violation(ViolationKind.LEFT_BEHIND, words)))
        return replace(attempt, examined=found)
    except Exception as error:
        return replace(harness_failed(attempt, error), reply=None)


def _wrong(files: CaseFiles, attempt: Attempt) -> bool:
    """Whether the first outputs are not within their bounds; what cannot be told is no."""
    case = attempt.step.case
    try:
        if attempt.taken:
            judged = files.judged(case, attempt.taken).judged
            return bool(judged.mismatches or judged.violations)
        outputs = read_outputs(outputs_file(attempt.outputs, 0))
        return any(accepted(outputs[name], item) is None for name, item in files.reference(attempt.key, case).items())
    except Exception:  # whoever judges meets it too
        return False


class Unanswered(Exception):
    """A call that gave no outputs."""

    def __init__(self, record: Record) -> None:
        super().__init__(record.message)
        self.record = record


def _apart(runner: ChildRunner, attempt: Attempt) -> Attempt:
    """The attempt as it is made in processes apart, each with one device."""
    conditions = Conditions(attempt.step.conditions.placement if runner.plan.device == "cpu" else "pinned")
    return replace(attempt, step=replace(attempt.step, conditions=conditions))


def _of_process(attempt: Attempt, name: str) -> Attempt:
    role, launches = PROCESSES[name]
    return replace(attempt, process=name, role=role, launches=launches)


class Examination:
    """The further calls of one candidate on one rank."""

    def __init__(self, runner: ChildRunner, attempt: Attempt) -> None:
        """``attempt`` is one that was answered."""
        check = checks.load(attempt.step.case.check)
        assert isinstance(check, CandidateCheck)
        self.runner, self.check, self.case = runner, check, attempt.step.case
        self.device = runner.plan.device
        self._file = runner.files.folder / f"{Path(attempt.outputs).name}.inputs"  # not in the folder of the candidate
        self._hand: HandOver
        if attempt.taken:
            assert runner.files.desk is not None
            self._hand = BySharedMemory(runner.files.desk, self.case, self._file)
        else:
            self._hand = ByFiles(runner.files, attempt.key, self.case, self.check, self._file)
        self._attempt = replace(_apart(runner, attempt), outputs=f"{attempt.outputs}.answer", reply=None)

    def examine(self) -> Examined:
        """Asks for all calls and concludes; ends the processes that answered them."""
        try:
            return self._examined()
        except Unanswered as unanswered:
            return Examined(failed=unanswered.record)
        finally:
            self.runner.child.retire()
            self._file.unlink(missing_ok=True)

    def _examined(self) -> Examined:
        other = _fresh()
        live = self._process("calls")
        seen = Seen(before=live.ask(other), first=live.ask(compared=True), again=live.ask())
        seen.differing = self._hand.differing
        if seen.unsteady:
            seen.further = [live.ask() for _ in range(FURTHER)]
        if live.sent[OWN].form == live.sent[other].form:
            seen.moved = live.ask(other, in_place=True)
        if self.device == "cuda":
            seen.late = live.try_(late=True)
            seen.prompt = live.try_(launches=DELAYED, prompt=True)
        size = live.sent[OWN].size + seen.first.outputs.size
        self.runner.child.settle()
        timed = self._timed(live, seen, size)
        unlike = self._unlike(live)
        seen.kept = live.try_(launches=IDLE)
        idle = self._process("idle calls")
        if seen.first.launches or self.check.declares_triton:  # else there is nothing to hold back
            seen.idle, seen.changed = idle.try_(launches=IDLE), idle.try_(launches=CHANGED)
        violations = [*_changed(seen.first), *seen.violations(), *idle.broken_off()]
        if violations:
            return Examined(tuple(violations))
        timings, note = self._timings(timed)
        doubtful = self._doubtful(timed, always=not unlike or size < LARGE)
        return Examined(doubts=(*seen.doubts(), *doubtful, *unlike), timings=timings, note=note, unsteady=seen.unsteady)

    def _unlike(self, live: _Calls) -> list[Doubt]:
        """A call with inputs that are drawn otherwise, for candidates that count on how those of the case are."""
        draw = replace(_fresh(), unlike=secrets.randbits(48))
        answer = live.try_(draw)
        if answer is None or not live.sent[draw].words:
            return []
        words = f"right for inputs as they are drawn, wrong for such that are {live.sent[draw].words}"
        return [Doubt(answer.outputs, draw, wrong=Violation(ViolationKind.STATISTICS, words), optional=True)]

    def _timed(self, live: _Calls, seen: Seen, size: int) -> list[_Timed]:
        """Calls with inputs that none had before. Those taken by chance are made twice, and their outputs are read.

        Args:
            size: bytes of the inputs and outputs of a call.
        """
        chance = secrets.SystemRandom()
        count = UNHELD + max(FEWEST, min(TIMED[self.device], MOVED // max(size, 1)))
        sampled = chance.sample(range(count), SAMPLED if size <= MOVED else FEW_SAMPLED)
        unheld = chance.sample(range(1, count), UNHELD)
        before = {seen.before.outputs.bits, seen.first.outputs.bits}
        made = []
        for number in range(count):
            draw = _fresh()
            key = live.place(draw)
            done, total = live.go(key, held=number not in unheld)
            read = number in sampled or total in before
            answer = live.fetch(done, total) if read else _answer(NOTHING, done)
            repeated = total in before and answer.outputs.varies
            before.add(total)
            again = live.fetch(*live.go(key)) if number in sampled else answer
            same = again.digest == answer.digest
            made.append(_Timed(number, draw, answer, read, repeated, same, number not in unheld))
        return made

    def _doubtful(self, timed: Sequence[_Timed], *, always: bool) -> list[Doubt]:
        """Timed calls to which a fresh process, asked for few calls, gives other answers.

        Args:
            always: one is in doubt anyway, since all processes may give the same wrong answer to inputs that are not
                those of the case.
        """
        kept = [call for call in timed if call.read]
        suspects = [call for call in kept if call.repeated][:SAMPLED] + [call for call in kept if not call.repeated]
        fresh = self._process("fresh calls")
        found = []
        for call in suspects:
            answer = fresh.try_(call.draw)
            if (always and call is suspects[-1]) or answer is None or answer.digest != call.answer.digest:
                found.append(Doubt(call.answer.outputs, call.draw, wrong=call.violation(len(timed))))
        return found

    def _timings(self, timed: Sequence[_Timed]) -> tuple[dict[str, float], str]:
        """Median times of a call of the candidate and of the plain code, which has a process of its own; a remark.

        The process of a candidate may say what it likes of its time. Where calls that nothing holds back take much
        longer from outside, beyond what those of the plain code take longer, that is what counts for both.
        """
        if self.device != "cuda":
            return {}, ""
        plain = self._process("plain calls")
        key = plain.place(OWN)
        model = [(_answer(NOTHING, plain.go(key, held=call.held)[0]), call.held) for call in timed]
        told, beyond = _told_and_beyond([(call.answer, call.held) for call in timed])
        reference, usual = _told_and_beyond(model)
        note = ""
        if beyond > 2 * max(usual, 0.0) + UNSEEN:
            note = f"its process says {told * 1e3:.3f} ms a call: times are those of the clock outside of it"
            told, reference = told + beyond, reference + max(usual, 0.0)
        return {"call": told, "candidate": told, "reference": reference}, note

    def _process(self, name: str) -> _Calls:
        return _Calls(self.runner, _of_process(self._attempt, name), self._file, self._hand)


class _Calls:
    """One process that answers calls."""

    def __init__(self, runner: ChildRunner, attempt: Attempt, file: Path, hand: HandOver) -> None:
        self._runner, self._attempt, self._file, self._hand = runner, attempt, file, hand
        self._ended: Record | None = None
        self.sent: dict[Draw, Sent] = {}  # what there is to know of the inputs of its calls

    def ask(self, draw: Draw = OWN, **how: Any) -> Answer:
        """One call.

        Raises:
            Unanswered: it raised, or its process ended or hung.
        """
        self.sent[draw] = self._hand.send(draw)
        done = self._answered(Call(str(self._file), **how))
        keep = draw == OWN or draw.unlike is not None  # others are not looked at again
        return _answer(self._outputs(done, keep=keep), done)

    def place(self, draw: Draw) -> int:
        """Hands over inputs of a timed call under a seal, and returns its key.

        Raises:
            Unanswered: as :meth:`ask`.
        """
        key = secrets.randbits(KEY_BITS)
        self._hand.send(draw, key)
        self._answered(Call(str(self._file), step=PLACE))
        return key

    def go(self, key: int, *, held: bool = True) -> tuple[Attempt, int]:
        """The call itself; how it went, and the sum that binds its outputs.

        Raises:
            Unanswered: as :meth:`ask`.
        """
        done = self._answered(Call("", step=GO, key=key, held=held))
        return done, done.reply.bit_sum if done.reply else 0

    def fetch(self, done: Attempt, total: int) -> Answer:
        """Its outputs.

        Raises:
            Unanswered: as :meth:`ask`, and where they are others than those that it had when the call had ended.
        """
        outputs = self._outputs(self._answered(Call("", step=FETCH)), keep=True)
        if outputs.bits != total:
            words = "the outputs that its process sent are not those that it had when it said that the call had ended"
            raise Unanswered(replace(done.record, outcome=Outcome.ERROR, message=words))
        return _answer(outputs, done)

    def _answered(self, call: Call) -> Attempt:
        if self._ended is not None:
            raise Unanswered(self._ended)
        done = self._runner.ask(replace(self._attempt, call=call))
        if done.reply is None:
            self._ended = done.record
            raise Unanswered(done.record)
        if done.reply.status != "ran":
            reply = done.reply
            outcome = Outcome.CRASH if reply.sticky else Outcome.ERROR
            record = replace(done.record, outcome=outcome, message=reply.message, traceback=reply.traceback)
            self._ended = record if reply.fatal else None
            raise Unanswered(replace(record, sticky=reply.sticky, source=reply.source))
        return done

    def _outputs(self, done: Attempt, *, keep: bool) -> Taken:
        try:
            return self._hand.take(done.outputs, keep=keep)
        except NoOutputs as error:
            raise Unanswered(replace(done.record, outcome=Outcome.ERROR, message=str(error))) from None

    def try_(self, draw: Draw = OWN, **how: Any) -> Answer | None:
        """One call; None where it gives no outputs."""
        try:
            return self.ask(draw, **how)
        except Unanswered:
            return None

    def broken_off(self) -> list[Violation]:
        """What it means that a process without kernels ended by an exit code, or did not end: nobody sees what it does.

        One that raises, or is killed for what it did with values that no kernel wrote, needs its kernels.
        """
        ended = self._ended
        if ended is None or not (ended.outcome is Outcome.HANG or "exit code" in ended.message):
            return []
        words = "in a call whose kernels did nothing: whether its answer comes from them cannot be seen"
        return [Violation(ViolationKind.PROCESS, f"{ended.message} {words}")]


@dataclass(frozen=True)
class _Timed:
    number: int
    draw: Draw
    answer: Answer
    read: bool  # its outputs are there
    repeated: bool  # its bits are those of an earlier call with other inputs
    stable: bool  # equal inputs right behind it got the same bits
    held: bool  # the device was held back until the host had launched it

    def violation(self, count: int) -> Violation:
        """What it is where its outputs are wrong."""
        words = f"call {self.number + 1} of {count} with inputs that no call had before"
        if self.repeated:
            return Violation(
                ViolationKind.CACHED, f"{words} got bit for bit the answer of an earlier call, kept from it"
            )
        if not self.stable:
            return Violation(
                ViolationKind.REPEATS_DIFFER, f"{words} got a wrong answer, and other bits when it was made again"
            )
        return Violation(
            ViolationKind.CALLS_DIFFER, f"{words} got a wrong answer, though that to the inputs of the case is right"
        )


@dataclass
class Seen:
    """The answers to the calls whose times do not matter; None where one was not made or gave no outputs."""

    before: Answer  # to other inputs
    first: Answer  # to the inputs of the case, as all others that do not say otherwise
    again: Answer  # from other memory
    moved: Answer | None = None  # to the other inputs, in the memory of those before
    late: Answer | None = None  # produced on the caller's stream right before the call, behind a delay
    prompt: Answer | None = None  # read on the caller's stream right behind the call, whose launches begin late
    kept: Answer | None = None  # kernels doing nothing, after all the calls before
    idle: Answer | None = None  # kernels doing nothing, in a process in which none ever did anything
    changed: Answer | None = None  # kernels that leave other values
    further: Sequence[Answer] = ()  # as ``again``
    differing: Callable[[Taken, Taken], tuple[int, int]] = lambda outputs, others: (0, 0)  # elements, of all

    @property
    def unsteady(self) -> bool:
        """Whether equal inputs give other bits: then only the reference can tell right from wrong."""
        return self.again.digest != self.first.digest

    def violations(self) -> list[Violation]:
        """What the answers show by themselves."""
        found = []
        if not self.unsteady:
            found += [violation for _, violation in self._unordered()][:1]
        if self.first.outputs.varies:
            found += [Violation(ViolationKind.CACHED, words) for words in self._signs_of_cache()][:1]
            found += [violation for answer, violation in self._without() if answer.digest == self.first.digest][:1]
        return found

    def doubts(self) -> list[Doubt]:
        """The answer that others are compared with, and those without the kernels that may be right all the same."""
        words = "a call that was asked for by itself got a wrong answer, though that to the case is right"
        doubts = [Doubt(self.first.outputs, wrong=Violation(ViolationKind.CALLS_DIFFER, words))]
        if self.unsteady:
            words = "a further call with equal inputs gave other bits, and wrong ones"
            again = Violation(ViolationKind.REPEATS_DIFFER, words)
            doubts += [Doubt(answer.outputs, wrong=again) for answer in (self.again, *self.further)]
            doubts += [Doubt(answer.outputs, wrong=violation) for answer, violation in self._unordered()]
        others = [pair for pair in self._without() if pair[0].digest != self.first.digest]
        if self.first.outputs.varies:
            doubts += [Doubt(answer.outputs, right=violation) for answer, violation in others]
        return doubts

    def _signs_of_cache(self) -> Iterable[str]:
        """Signs of an answer that is kept from an earlier call, the plainest first."""
        if self.first.digest == self.before.digest:
            yield "the answer is bit for bit the one that other inputs got a call before"
        if self.moved is not None and self.moved.digest == self.first.digest:
            yield "with other inputs in the same memory the answer is still the one before"
        if self.first.launched and not self.again.launched:
            yield "a second call with equal inputs launches no kernel: its answer is kept from an earlier call"
        without = self.idle is not None and self.idle.digest == self.first.digest
        needed = self.first.launched and not without  # what a kernel laid out in a call before is not kept from it
        if needed and self.kept is not None and self.kept.digest == self.first.digest:
            yield "a later call with equal inputs needs no kernel: its answer is kept from an earlier call"

    def _without(self) -> Iterable[tuple[Answer, Violation]]:
        """Answers for which the kernels did something else, with what it means that they are right."""
        names = ", ".join(self.first.launches)
        if names and self.idle is not None and self.idle.digest != self.before.digest:
            words = f"the output stays the same when its kernels do nothing: {names}"
            yield self.idle, Violation(ViolationKind.IDLE, words)
        if names and self.changed is not None and self.changed.digest != self.before.digest:
            words = f"the output stays the same when its kernels leave other values behind: {names}"
            yield self.changed, Violation(ViolationKind.IDLE, words)

    def _unordered(self) -> Iterable[tuple[Answer, Violation]]:
        """Answers that are others where stream order alone has to make them right, with what that means."""
        for answer, when in (
            (self.prompt, "outputs are read right behind the call"),
            (self.late, "inputs are produced right before the call"),
        ):
            if answer is not None and answer.digest != self.first.digest:
                wrong, total = self.differing(self.first.outputs, answer.outputs)
                where = "; ".join(dict.fromkeys(answer.elsewhere)) or "work of the call goes elsewhere"
                words = f"{wrong} of {total} elements differ when {when} on the caller's stream"
                yield answer, Violation(ViolationKind.ORDER, f"{where}, and nobody waits: {words}")


def _fresh() -> Draw:
    """Inputs that no call had before."""
    return Draw(secrets.randbits(48))


def _changed(first: Answer) -> list[Violation]:
    """Inputs that the call changed and ``Model`` leaves alone."""
    return [
        Violation(ViolationKind.INPUTS, f"the call changed {name}: {count} of {total} elements")
        for name, (count, total) in first.outputs.changed.items()
    ]


def _told_and_beyond(calls: Sequence[tuple[Answer, bool]]) -> tuple[float, float]:
    """Median s of calls as their process says, the first one aside, and what unheld ones take longer from outside."""
    told = median(answer.seconds for answer, held in calls[1:] if held)
    return told, median(answer.waited for answer, held in calls if not held) - told


def _answer(outputs: Taken, done: Attempt) -> Answer:
    """What an attempt that was answered says, with the outputs that were taken."""
    reply = done.reply
    assert reply is not None
    elsewhere = [
        f"{launch['kernel']} launched on stream {launch['stream']}, the caller's is {reply.stream}"
        for launch in reply.launches
        if reply.stream is not None and launch["stream"] != reply.stream
    ]
    return Answer(
        outputs,
        tuple(dict.fromkeys(str(launch["kernel"]) for launch in reply.launches)),
        tuple(elsewhere),
        reply.launched,
        seconds=reply.timings.get("call", 0.0),
        waited=done.record.seconds.get(ANSWER, 0.0),
    )
