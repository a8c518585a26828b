"""What the experiments with a failing case answered, counted in processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from gpucheck.diagnose.chance import LUCK, by_luck, one_rate, rate_words
from gpucheck.diagnose.differing_calls import how_calls_differ
from gpucheck.diagnose.error_pattern import error_pattern
from gpucheck.diagnose.experiment_list import EXPERIMENTS, HISTORY, REPEAT
from gpucheck.model.record import Outcome, Record, lacks_memory
from gpucheck.model.vocabulary import ExperimentName, ViolationKind
from gpucheck.records.run_folder import Run

FEWEST = 3  # processes that say whether calls differ, and in how many ways at least they do without order
IN_ORDER = 4  # processes in which the same calls must differ before the number of the call is said to decide
LENDERS = 6  # ranks that lend something, at most, with each of which it must come again where it comes and goes
JUDGED = (Outcome.PASS, Outcome.VIOLATION, Outcome.MISMATCH)
BROKE = (Outcome.ERROR, Outcome.CRASH)


def again(failure: Record, attempt: Record) -> bool:
    """Whether an attempt failed as its case did before, be it beside other faults."""
    if failure.mismatches:
        return bool(attempt.mismatches)
    if failure.outcome is Outcome.VIOLATION:
        return bool(kinds(failure) & kinds(attempt))
    return attempt.outcome is failure.outcome or (attempt.outcome in BROKE and failure.outcome in BROKE)


def absent(failure: Record, attempt: Record) -> bool:
    """Whether an attempt came to its end without the failure, with or without a violation of another kind."""
    return (
        attempt.outcome in JUDGED
        and not again(failure, attempt)
        and (attempt.outcome is Outcome.PASS or bool(failure.mismatches))
    )


def lacked_memory(attempt: Record) -> bool:
    """Whether an attempt came to nothing for want of memory, which says nothing of a case that fails otherwise."""
    return attempt.outcome in (*BROKE, Outcome.HARNESS) and lacks_memory(attempt.message)


def steady(attempt: Record) -> bool:
    """Whether all calls of a process gave the same bits, or differ with what memory held and with nothing else."""
    return not attempt.calls or attempt.by_fill


def regular(attempts: Sequence[Record]) -> bool:
    """Whether calls of one process agree, or differ alike in each process."""
    return all(map(steady, attempts)) or _distinct(attempts) == 1


@dataclass(frozen=True)
class Answers:
    """The experiments with a failed record, its own or those of one that failed alike.

    What is looked for in each process is the failure; where it comes and goes within a process, that calls differ; and
    where it comes every time with the same bits, these bits: other wrong ones are those of another fault.
    """

    failure: Record
    tried: Mapping[ExperimentName, Sequence[Record]]  # by name, one record a process
    of: str = ""  # label of the other case that the answers come from; "" for the record's own
    clean: frozenset[int] = frozenset()  # other local ranks of the node, those that were right
    others: frozenset[int] = frozenset()  # all of them

    def processes(self, name: ExperimentName) -> Sequence[Record]:
        """Those that tell something: one that lacked memory, which others held, tells of these."""
        lacks = lacked_memory(self.failure)
        return [each for each in self.tried.get(name, ()) if lacks or not lacked_memory(each)]

    def made(self, name: ExperimentName) -> int:
        """How many processes there were, whatever became of them."""
        return len(self.tried.get(name, ()))

    @property
    def judged_alone(self) -> Sequence[Record]:
        """The fresh processes that gave outputs: only these tell how calls differ."""
        return [each for each in self.processes(REPEAT) if each.outcome in JUDGED]

    def right(self, name: ExperimentName) -> bool:
        """Whether what is looked for stayed away in each process."""
        made = self.processes(name)
        if self.by_call:
            return bool(made) and regular(made) and all(each.outcome in JUDGED for each in made)
        return bool(made) and all(absent(self.failure, each) or self._changed(each) for each in made)

    def wrong(self, name: ExperimentName) -> bool:
        """Whether it came again in some process."""
        if self.by_call:
            return self._varies(name)
        return any(again(self.failure, each) and not self._changed(each) for each in self.processes(name))

    def wrongs(self) -> int:
        """In how many fresh processes the failure came again."""
        return sum(again(self.failure, each) for each in self.processes(REPEAT))

    @property
    def always(self) -> bool:
        """Whether the case failed in each fresh process."""
        return bool(self.processes(REPEAT)) and self.wrongs() == len(self.processes(REPEAT))

    @property
    def never(self) -> bool:
        """Whether it was right in each fresh process."""
        return bool(self.processes(REPEAT)) and all(absent(self.failure, each) for each in self.processes(REPEAT))

    @cached_property
    def deterministic(self) -> bool:
        """Whether each fresh process failed in every call, all with the same bits."""
        alone = self.processes(REPEAT)
        return (
            self.always
            and all(map(steady, alone))
            and all(each.outcome is alone[0].outcome and each.bits == alone[0].bits for each in alone)
        )

    @cached_property
    def by_number(self) -> bool:
        """Whether the number of the call in its process decides: every fresh process gave the same differing calls."""
        alone = self.judged_alone
        return len(alone) >= IN_ORDER and not any(map(steady, alone)) and _distinct(alone) == 1

    @cached_property
    def by_call(self) -> bool:
        """Whether calls of one process differ, and not alike in each process."""
        alone = self.judged_alone
        return len(alone) >= IN_ORDER and not all(map(steady, alone)) and not self.by_number

    @property
    def irregular(self) -> bool:
        """Whether calls differ in no order: not as if the process or the number of the call decided."""
        return self.by_call and _distinct([each for each in self.processes(REPEAT) if not steady(each)]) >= FEWEST

    @property
    def by_process(self) -> bool:
        """Whether all calls of a process agree, and processes do not, as calls of one rate would not have it."""
        alone = self.processes(REPEAT)
        if self.failure.outcome not in JUDGED or not all(map(steady, (self.failure, *alone))) or self.deterministic:
            return False
        if not self.wrongs() or not all(again(self.failure, each) or absent(self.failure, each) for each in alone):
            return False
        calls = Counter[str]()
        for each in alone:
            calls[each.bits] += max(1, each.asked)
        ((usual, often),) = calls.most_common(1)
        others = sum(each.bits != usual for each in alone)  # any so many of the processes could have been these
        return math.comb(len(alone), others) * one_rate(often, calls.total() - often) < LUCK

    def separates(self, name: ExperimentName) -> bool:
        """Whether the changed condition is what makes the case right.

        All its processes must be right, and so many that they are not by luck: processes that make as many calls in
        one and the same way are alike, so that each would have been as likely to fail.
        """
        limit = LUCK / 4 if self.by_call else LUCK  # where more is looked at, more comes out by luck
        return self.right(name) and self.wrong(REPEAT) and self._luck(name) < limit

    def _luck(self, name: ExperimentName) -> float:
        made, alone = self.processes(name), self.processes(REPEAT)
        if self.by_call:
            known = {*map(_pattern, made)}
            strange = sum(not any(_same(_pattern(each), other) for other in known) for each in alone)
            return by_luck(strange, len(alone), len(made)) if strange else 1.0
        calls = min(attempt.asked for attempt in made)
        like = [each for each in alone if each.asked <= calls or _from_the_first(each)]
        wrong = sum(again(self.failure, each) for each in like)
        return by_luck(wrong, len(like), len(made)) if wrong else 1.0

    def _varies(self, name: ExperimentName) -> bool:
        """Whether calls of an experiment differ, not alike in each process, and whichever rank lends something."""
        made = self.processes(name)
        if all(map(steady, made)):
            return False
        alike = _alike(made)
        usual = max(alike, key=alike.__getitem__)
        strange = [each for each in made if not steady(each) and not _same(_pattern(each), usual)]
        if not strange and (not usual or _distinct(made) == 1):
            return False
        lent = {each.partner for each in strange} - {None}
        return len(lent) >= min(LENDERS, len(self.lenders)) if EXPERIMENTS[name].lends else True

    @property
    def lenders(self) -> frozenset[int]:
        """The local ranks that lend their environment or device: those that were right, else all others."""
        return self.clean or self.others

    def _changed(self, attempt: Record) -> bool:
        """Whether a case that always gives the same wrong bits gave others, and not for what another rank lent."""
        if not (self.deterministic and attempt.mismatches and steady(attempt)):
            return False
        other = attempt.bits != self.processes(REPEAT)[0].bits
        return other and (attempt.partner is None or attempt.partner in self.clean)

    @property
    def spoiled_by(self) -> tuple[int, ...] | None:
        """The fewest steps after which the case fails in every process, where it is right without; None: none known."""
        if not self.never:
            return None
        for steps, attempts in sorted(self.after.items(), key=lambda item: len(item[0])):
            wrong = sum(again(self.failure, attempt) for attempt in attempts)
            if wrong == len(attempts) and by_luck(wrong, wrong, len(self.processes(REPEAT))) < LUCK:
                return steps
        return None

    @property
    def after(self) -> dict[tuple[int, ...], list[Record]]:
        """The processes that ran other cases before, by the steps of these."""
        found: dict[tuple[int, ...], list[Record]] = {}
        for attempt in self.processes(HISTORY):
            found.setdefault(tuple(attempt.after), []).append(attempt)
        return found

    def lines(self) -> list[str]:
        """The answers in words: repeats with their rate, then what was right and what was wrong."""
        lines = [f"answers of {self.of}, which fails alike"] if self.of else []
        if REPEAT in self.tried:
            lines.append(repeated(self.failure, self.processes(REPEAT)))
        shown = [name for name in self.tried if name not in (REPEAT, HISTORY)]
        for word, asked in (("right", self.right), ("wrong", self.wrong)):
            named = [EXPERIMENTS[name].words + _times(self.processes(name)) for name in shown if asked(name)]
            if named:
                lines.append(f"{word} {', '.join(named)}")
        silent = [f"{EXPERIMENTS[name].words} ({ends})" for name in shown if (ends := self._unanswered(name))]
        return lines + ([f"no answer {', '.join(silent)}"] if silent else []) + self._history()

    def _unanswered(self, name: ExperimentName) -> str:
        """How processes of an experiment ended that neither were right nor showed what is looked for."""
        made = [each for each in self.tried[name] if each.outcome not in (*JUDGED, self.failure.outcome)]
        if self.right(name) or self.wrong(name):
            return ""
        return ", ".join(f"{count}x {end}" for end, count in Counter(each.outcome.value for each in made).items())

    def _history(self) -> list[str]:
        if HISTORY not in self.tried:
            return []
        longest, attempts = max(self.after.items(), key=lambda item: len(item[0]))
        wrong = sum(again(self.failure, attempt) for attempt in attempts)
        end = "wrong again" if wrong else "right all the same"
        return [f"{EXPERIMENTS[HISTORY].words} ({len(longest)}), in the same order: {end}"]


def answers(run: Run, record: Record) -> Answers:
    """The experiments that say something about a failed record."""
    own = run.experiments.get((record.step, record.rank), {})
    every = {**_shared(run, record), **own} if own else {}
    mine = Answers(record, {name: every[name] for name in EXPERIMENTS if name in every}, "", *_others(run, record))
    if sum(map(len, own.values())) > 1:
        return mine
    for (step, rank), tried in run.experiments.items():
        other = run.records[(step, rank)]
        if rank != record.rank or step == record.step or sum(map(len, tried.values())) < 2:
            continue
        tried = {name: made for name, made in tried.items() if name in EXPERIMENTS}  # another version may have others
        known = Answers(other, tried, run.plan.steps[step].label, *_others(run, other))
        if alike(other, record) and run.plan.steps[step].row == run.plan.steps[record.step].row and serves(known, mine):
            return known
    return mine


def serves(known: Answers, mine: Answers) -> bool:
    """Whether the answers of a case hold for one of its row that looks alike: what that one showed itself must fit.

    Two faults may well give outputs that are wrong in the same way. Only what fails every time, each with bits of its
    own, is taken for alike; what comes and goes, or depends on what ran before, each case must show itself.
    """
    if not known.deterministic or not steady(mine.failure):
        return False
    return all(steady(alone) and again(mine.failure, alone) for alone in mine.processes(REPEAT))


def _others(run: Run, record: Record) -> tuple[frozenset[int], frozenset[int]]:
    """The other local ranks of a record's node: those on which its case is right, and all."""
    mine = run.plan.local_rank(record.rank)
    others = frozenset(range(run.plan.nproc)) - {mine}
    first = record.rank - mine
    return frozenset(r for r in others if run.records[(record.step, first + r)].outcome is Outcome.PASS), others


def alike(one: Record, other: Record) -> bool:
    """Whether two records of a row fail so much alike that the experiments with one serve for both."""
    return way(one) == way(other)


def way(record: Record) -> tuple[str, ...]:
    """How a record failed."""
    wrong = {each.fault for each in record.transfers}
    return record.outcome.value, error_pattern(record), *sorted(kinds(record)), *sorted(wrong)


def _shared(run: Run, record: Record) -> dict[ExperimentName, Sequence[Record]]:
    """The experiments of its node's ranks that gave the same wrong bits every time: they make each once."""
    first = record.rank - run.plan.local_rank(record.rank)
    found: dict[ExperimentName, Sequence[Record]] = {}
    for rank in range(first, first + run.plan.nproc):
        other, tried = run.records[(record.step, rank)], run.experiments.get((record.step, rank), {})
        if record.bits and other.bits == record.bits and Answers(other, tried).deterministic:
            found |= tried
        elif rank == record.rank:
            return {}
    found.pop(REPEAT, None)
    return found


def kinds(record: Record) -> set[ViolationKind]:
    """The kinds of a record's violations."""
    return {violation.kind for violation in record.violations}


def repeated(failure: Record, alone: Sequence[Record]) -> str:
    """In how many fresh processes a case failed, and how its calls did."""
    seen = Answers(failure, {REPEAT: alone})
    lacked = len(alone) - len(seen.processes(REPEAT))
    if not lacked:
        return _repeated(seen)
    words = f"{lacked} fresh process" + "es" * (lacked != 1) + " lacked memory"
    return f"no answer: {words}" if lacked == len(alone) else f"{_repeated(seen)}; {words}"


def _repeated(seen: Answers) -> str:
    failure, alone = seen.failure, seen.processes(REPEAT)
    wrong, count = seen.wrongs(), len(alone)
    fresh = f"{count} fresh process" + "es" * (count != 1)
    calls = sum(max(1, each.asked) for each in alone)
    if seen.never:
        return f"right in all of {fresh}, {calls} calls: not reproduced"
    words = f"wrong in {wrong} of {fresh}"
    if not failure.mismatches and not any(each.calls for each in alone):
        messages = sorted({each.message for each in alone if each.message and again(failure, each)})
        return words + (f": {messages[0]}" if messages else "")
    if all(each.bad_calls == [0] and ViolationKind.TUNING_DIFFERS in kinds(each) for each in alone):
        return f"{words}, in the first call of each, the one that was tuned, and in no other"
    if seen.by_number:
        return f"{words}, in the same calls of each: {call_words(seen.judged_alone[0])}"
    if not all(map(steady, alone)):
        judged = seen.judged_alone or alone
        bad, made = (
            sum(_bad_calls(each) for each in judged),
            sum(max(1, len(each.calls) or each.asked) for each in judged),
        )
        return f"{words}, {bad} of {made} calls; {rate_words(bad, made)}: intermittent"
    if any(each.by_fill for each in alone):
        return f"{words}, one output for each content of memory that is not the input's: deterministic"
    if seen.deterministic:
        return f"{words}, the same bits in each call: deterministic"
    silent = Counter(x.outcome.value for x in alone if not again(failure, x) and not absent(failure, x))
    if silent:
        ends = ", ".join(f"{often}x {end}" for end, often in silent.items())
        return f"{words}, {silent.total()} of them without an answer: {ends}"
    return f"{words}, all calls of a process alike: decided anew in each process"


def call_words(attempt: Record) -> str:
    """Which calls of a process gave other bits, in words."""
    return how_calls_differ(attempt.calls)


def _bad_calls(attempt: Record) -> int:
    if attempt.bad_calls:
        return len(attempt.bad_calls)
    return (len(attempt.calls) or max(1, attempt.asked)) if attempt.mismatches else 0


def _pattern(attempt: Record) -> tuple[str, ...]:
    """The digests of a process's calls where these differ; empty for all that are steady, which count as alike."""
    return () if steady(attempt) else tuple(attempt.calls)


def _same(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the calls of two processes differ alike, as far as both made them."""
    made = min(len(one), len(other))
    return one[:made] == other[:made] if made else one == other


def _alike(attempts: Sequence[Record]) -> dict[tuple[str, ...], int]:
    """The patterns of processes, in order, each with how many processes' calls differ as it says."""
    counts = Counter(map(_pattern, attempts))
    return {one: sum(count for other, count in counts.items() if _same(one, other)) for one in counts}


def _distinct(attempts: Sequence[Record]) -> int:
    """In how many ways the calls of processes differ."""
    ways: list[tuple[str, ...]] = []
    for pattern in dict.fromkeys(map(_pattern, attempts)):
        if not any(_same(pattern, known) for known in ways):
            ways.append(pattern)
    return len(ways)


def irregular_share(attempts: Sequence[Record]) -> float:
    """The share of processes whose calls differ otherwise than in most."""
    return 1 - max(_alike(attempts).values()) / len(attempts)


def _from_the_first(attempt: Record) -> bool:
    """Whether a process failed in its first call, so that fewer calls would have failed as well."""
    return bool(attempt.mismatches) and (not attempt.bad_calls or attempt.bad_calls[0] == 0)


def _times(attempts: Sequence[Record]) -> str:
    return f" ({len(attempts)} processes)" if len(attempts) > 1 else ""


def every_time(run: Run, record: Record) -> bool:
    """Whether no experiment with a failed record speaks against a fault that shows every time."""
    seen = answers(run, record)
    return (not seen.tried or seen.deterministic) and not any(map(seen.right, seen.tried))
