"""From what a child answered to a record: outputs against references, violations, digests; all of it on the CPU."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from gpucheck import checks
from gpucheck.checks.base import GIVES, CandidateCheck, Check, JointCheck
from gpucheck.checks.stored_state import loader_words
from gpucheck.model.case import Case
from gpucheck.model.check_source import KERNELBENCH
from gpucheck.model.errors import UsageError
from gpucheck.model.record import Launch, Outcome, Record, Transfer, Violation
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.verify import bounds, digest, offsets, published_rules
from gpucheck.verify.expected import FIXED, Axes, Expected, indifference
from gpucheck.verify.judge import Judgement, judge
from gpucheck.worker.memory_fills import depends_on_fill
from gpucheck.worker.protocol import OWN, Answer, Reply, outputs_file
from gpucheck.worker.supervisor.attempt import (
    Attempt,
    Doubt,
    Examined,
    NoOutputs,
    read_outputs,
    remove_outputs,
    words,
)
from gpucheck.worker.supervisor.case_files import CaseFiles, all_processors
from gpucheck.worker.supervisor.violations import observed_violations

AROUND_INPUT = "outside of"  # begins the words on memory that was read around a tensor of given data
SHORT = 12  # characters of a digest that tell the outputs of calls apart
UNSTEADY = "equal inputs give other bits in each call, as where sums are made in no fixed order: those were judged too"
_RAISED = {"error": Outcome.ERROR, "harness": Outcome.HARNESS}


Keep = Callable[[dict[str, Tensor], dict[str, Expected], dict[str, Axes]], None]
"""Takes outputs, their references and the names of their axes, of which nothing is left after the call."""


class Known:
    """What a rank has judged in earlier passes over the plan: equal bits need no second judgement."""

    def __init__(self) -> None:
        self._right: dict[tuple[int, str], Record] = {}  # by step and digest of the outputs
        self._first: dict[int, str] = {}  # digest that a step began with

    def judged(self, record: Record, reply: Reply) -> Record | None:
        """The record of a step whose outputs all have bits that were judged right; None where there are others."""
        if len(set(reply.digests)) != 1:
            return None
        before = self._right.get((record.step, reply.digests[0]))
        if before is None:
            return None
        same = {name: getattr(before, name) for name in ("digests", "tiles", "inputs", "tightness")}
        return replace(record, outcome=Outcome.PASS, repeats=len(reply.digests), **same)

    def learn(self, record: Record, reply: Reply) -> Record:
        """Remembers a judged record; one that is right but differs from the first pass does not repeat."""
        if record.mismatches or not reply.digests:
            return record
        digest = reply.digests[0]
        if record.outcome is Outcome.PASS:
            self._right[(record.step, digest)] = record
        if self._first.setdefault(record.step, digest) == digest:
            return record
        differs = Violation(
            ViolationKind.REPEATS_DIFFER, f"equal inputs gave other bits in pass {record.round + 1} than in pass 1"
        )
        return replace(record, outcome=Outcome.VIOLATION, violations=[*record.violations, differs])


def finished(files: CaseFiles, attempt: Attempt, known: Known | None = None, keep: Keep | None = None) -> Record:
    """The record of an attempt, whose files of outputs are removed.

    Args:
        known: takes part where the plan is gone through several times.
        keep: is given the outputs that the record tells of.
    """
    try:
        record = attempt.record
        if attempt.reply is not None:
            with bounds.computed_by(files.arithmetic()):
                record = _judged(files, attempt, attempt.reply, known, keep)
        if record.outcome.failed and not record.inputs:
            record = replace(record, inputs=files.input_digest(attempt.key, attempt.step.case))
        return record
    except NoOutputs as error:
        of_candidate = isinstance(checks.load(attempt.step.case.check), CandidateCheck)
        return replace(attempt.record, outcome=Outcome.ERROR if of_candidate else Outcome.HARNESS, message=str(error))
    except Exception as error:
        message = words(error)
        return replace(attempt.record, outcome=Outcome.HARNESS, message=message, traceback=traceback.format_exc())
    finally:
        remove_outputs(attempt)


@dataclass
class _Launches:
    """The launches of a case, judged one distinct output at a time."""

    outputs: dict[str, Tensor] = field(default_factory=dict)  # of the first, or of the first wrong one
    found: Judgement = field(default_factory=Judgement)  # of the same
    words: str = ""  # where the same begin to be wrong
    wrong: int = 0
    bad: list[int] = field(default_factory=list)  # the calls with a wrong output


def _judged(files: CaseFiles, attempt: Attempt, reply: Reply, known: Known | None, keep: Keep | None) -> Record:
    launches = [Launch(**launch) for launch in reply.launches]
    seconds = {**attempt.record.seconds, **reply.seconds}
    record = replace(attempt.record, **where_it_ran(reply), launches=launches, stream=reply.stream, seconds=seconds)
    twins = checks.load(attempt.step.case.check).twins(attempt.step.case)
    record = replace(record, engine=reply.engine, twins=list(twins))
    check = checks.load(attempt.step.case.check)
    of_candidate = isinstance(check, CandidateCheck)
    if isinstance(check, CandidateCheck):
        record = replace(record, precision=check.precision)
    if of_candidate and reply.status != "ran":  # whatever its process says of why there is no answer: there is none
        reply = replace(reply, status="error")
    if reply.status == "inapplicable":
        return replace(record, outcome=Outcome.INAPPLICABLE, message=reply.message)
    if reply.status in _RAISED:
        if isinstance(check, CandidateCheck):
            check.must_answer(attempt.step.case, files.given(attempt.key, attempt.step.case))
        return replace(
            record,
            outcome=Outcome.CRASH if reply.sticky else _RAISED[reply.status],
            message=reply.message + _before(files, attempt, reply),
            traceback=reply.traceback,
            sticky=reply.sticky,
            kernels=list(reply.expected_kernels),
            source=reply.source,
        )
    if known is None or of_candidate:  # of its outputs their bytes count, and no digest that its process names
        return _held_against_reference(files, attempt, reply, record, keep)
    before = known.judged(record, reply) if not observed_violations(reply, launches) else None
    return known.learn(before or _held_against_reference(files, attempt, reply, record, keep), reply)


def where_it_ran(known: Reply | Record) -> dict[str, Any]:
    """The fields of a record that say on which device a case ran."""
    return {"device": known.device, "gpu": known.gpu, "bus": known.bus}


def _held_against_reference(
    files: CaseFiles, attempt: Attempt, reply: Reply, record: Record, keep: Keep | None
) -> Record:
    begin = time.perf_counter()
    large = files.judged(attempt.step.case, attempt.taken) if attempt.taken else None
    expected = {} if large else files.reference(attempt.key, attempt.step.case)
    waited = time.perf_counter() - begin
    inputs, axes = _inputs_and_axes(files, attempt)
    judged = _of_large(large, reply) if large else _judge_launches(attempt, reply, inputs, axes, expected)
    if keep and not large:
        keep(judged.outputs, {name: each.widened() for name, each in expected.items()}, axes)
    violations = judged.found.violations + observed_violations(reply, record.launches)
    examined = attempt.examined or Examined()
    unsteady = examined.unsteady
    if examined.failed is not None:
        failed = examined.failed
        return replace(failed, **where_it_ran(record), launches=record.launches, stream=record.stream)
    if not judged.found.mismatches and not judged.found.violations:  # else how it was made explains nothing
        if isinstance(checks.load(attempt.step.case.check), CandidateCheck):  # sums may have no fixed order there
            steady = [each for each in violations if each.kind is not ViolationKind.REPEATS_DIFFER]
            violations, unsteady = steady, unsteady or len(steady) < len(violations)
        with all_processors(files.local_ranks):
            violations += examined_violations(examined, attempt.step.case, inputs, expected, judged.outputs, files)
    indifferent = large.indifferent if large else indifference(expected)
    if indifferent == FIXED:  # an answer with the bits of an earlier one need not be kept from it
        violations = [each for each in violations if each.kind is not ViolationKind.CACHED]
    transfers: list[Transfer] = []
    check = checks.load(attempt.step.case.check)
    fault = remark = ""
    if isinstance(check, CandidateCheck):
        fault, remark = check.fallback([launch.kernel for launch in record.launches], reply.device_kernels)
        violations += [Violation(ViolationKind.FALLBACK, fault)] if fault else []
    if judged.found.mismatches and isinstance(check, JointCheck):
        transfers = check.transfers(attempt.step.case, inputs, judged.outputs, expected)
    outcome = Outcome.MISMATCH if judged.found.mismatches else Outcome.VIOLATION if violations else Outcome.PASS
    loader = ""
    if outcome.failed:
        loader = loader_words(reply.engine, reply.sensitive, record.launches, explained=GIVES in judged.words)
    remarks = (reply.message, remark, judged.words, loader, examined.note, indifferent, UNSTEADY * unsteady)
    conditions = attempt.step.conditions
    often = conditions.repeat > 1 or conditions.concurrency > 1
    record = replace(
        record,
        outcome=outcome,
        rules=_rules(check, judged.outputs, expected, large),
        memory={**reply.memory, **(files.memory() if isinstance(check, CandidateCheck) else {})},
        message="; ".join(filter(None, remarks)),
        transfers=transfers,
        mismatches=judged.found.mismatches,
        violations=violations,
        digests=large.digests if large else {name: digest.whole(value) for name, value in judged.outputs.items()},
        tiles={name: digest.tiles(value) for name, value in judged.outputs.items()},
        inputs=files.input_digest(attempt.key, attempt.step.case),
        tightness=judged.found.tightness,
        arithmetic=files.arithmetic().name,
        bounds=large.bases if large else {name: item.basis for name, item in expected.items() if item.basis},
        timings=reply.timings if attempt.examined is None else examined.timings if outcome is Outcome.PASS else {},
        cost=reply.cost,
        ceilings=reply.ceilings,
        repeats=len(reply.digests) if often else 1,
        wrong=judged.wrong if often else min(judged.wrong, 1),
        distinct=max(1 + unsteady, len(set(reply.settled[0]))),
        calls=[digest[:SHORT] for digest in reply.digests] if len(set(reply.digests)) > 1 else [],
        bad_calls=judged.bad if len(judged.bad) < len(reply.digests) else [],
        by_fill=depends_on_fill(*reply.settled),
    )
    spent = time.perf_counter() - begin - waited
    return replace(record, seconds={**record.seconds, "reference": waited, "judge": spent})


def _rules(
    check: Check, outputs: dict[str, Tensor], expected: dict[str, Expected], large: Answer | None
) -> dict[str, dict[str, Any]]:
    """What the published rule that was asked for says of a candidate's outputs."""
    rule = check.rule if isinstance(check, CandidateCheck) else ""
    if rule != KERNELBENCH:
        return {}
    return {rule: large.rule if large else published_rules.kernelbench(outputs, expected)}


def _of_large(answer: Answer, reply: Reply) -> _Launches:
    """What outputs are that were judged where they lie; those of other passes that differ are not judged."""
    found: Judgement = answer.judged
    bad = bool(found.mismatches or found.violations)
    return _Launches(found=found, wrong=max(1, len(reply.digests)) * bad, bad=[*range(len(reply.digests))] * bad)


def examined_violations(
    examined: Examined,
    case: Case,
    inputs: dict[str, Tensor],
    expected: dict[str, Expected],
    right: dict[str, Tensor],
    files: CaseFiles,
) -> list[Violation]:
    """What further calls of a candidate showed; those in doubt are held against their reference, one of each kind.

    Args:
        right: outputs that were judged right for the inputs of the case.
    """

    def shown(doubt: Doubt) -> Violation | None:
        if not doubt.inputs and doubt.outputs.values is not None and _same_bits(doubt.outputs.values, right):
            return doubt.right
        try:
            judged = _judged_call(doubt, case, inputs, expected, files)
        except UsageError:
            if not doubt.optional:
                raise
            return None
        return doubt.wrong if judged.mismatches or judged.violations else doubt.right

    found = {violation.kind: violation for violation in reversed(examined.violations)}
    for doubt in examined.doubts:
        if doubt.optional and found:  # what is wrong anyway says nothing of how inputs are drawn
            continue
        if doubt.inputs and ViolationKind.REPEATS_DIFFER in found:  # nor of how other inputs are answered
            continue
        if not {part.kind for part in (doubt.right, doubt.wrong) if part} <= found.keys():
            violation = shown(doubt)
            found |= {violation.kind: violation} if violation else {}
    return list(found.values())


def _judged_call(
    doubt: Doubt, case: Case, inputs: dict[str, Tensor], expected: dict[str, Expected], files: CaseFiles
) -> Judgement:
    """The outputs of a further call against the reference of its inputs, here or where they were taken."""
    if doubt.outputs.values is None:
        found: Judgement = files.judged(case, doubt.outputs.digest, doubt.inputs or OWN).judged
        return found
    references = files.reference_of(case, inputs, doubt.inputs) if doubt.inputs else expected
    return judge(doubt.outputs.values, references, {})


def _same_bits(outputs: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return outputs.keys() == others.keys() and all(
        digest.whole(value) == digest.whole(others[name]) for name, value in outputs.items()
    )


def _inputs_and_axes(files: CaseFiles, attempt: Attempt) -> tuple[dict[str, Tensor], dict[str, Axes]]:
    inputs = files.given(attempt.key, attempt.step.case)
    return inputs, checks.load(attempt.step.case.check).axes(attempt.step.case, inputs)


def _before(files: CaseFiles, attempt: Attempt, reply: Reply) -> str:
    """What outputs that an error left say of the time before it; "" where there are none."""
    if not reply.saved or files.box(attempt.key):
        return ""
    expected = files.reference(attempt.key, attempt.step.case)
    words = _judge_launches(attempt, reply, *_inputs_and_axes(files, attempt), expected).words
    return f"; {words}" if words else ""


def _judge_launches(
    attempt: Attempt, reply: Reply, inputs: dict[str, Tensor], axes: dict[str, Axes], expected: dict[str, Expected]
) -> _Launches:
    case = attempt.step.case
    check = checks.load(case.check)

    @functools.cache  # a file holds what several fills gave
    def read(number: int) -> dict[str, Tensor]:
        return read_outputs(outputs_file(attempt.outputs, number), mapped=not isinstance(check, CandidateCheck))

    judged, filled = _Launches(), _filled(reply, read)
    for number, whole in enumerate(reply.saved or [""]):
        outputs = read(number)
        references = check.references_given_outputs(case, inputs, outputs, expected)
        found = judge(outputs, references, axes, filled)
        bad = bool(found.mismatches or found.violations)
        if not number or (bad and not judged.wrong):
            references = {name: each.widened() for name, each in references.items()} if bad else references
            ordered = check.order_mismatches(case, inputs, outputs, references, found.mismatches)
            found.mismatches, judged.words = ordered
            large = [tensor for launch in reply.launches for tensor in Launch(**launch).large]
            found.mismatches = offsets.with_hints(found.mismatches, outputs, references, axes, inputs, large)
            judged.outputs, judged.found = outputs, found
        judged.wrong += max(1, reply.digests.count(whole)) * bad
        judged.bad += [call for call, digest in enumerate(reply.digests) if bad and digest == whole]
    judged.bad.sort()
    return judged


def _filled(reply: Reply, read: Callable[[int], dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    """The outputs of calls by what memory was filled with before them, where that says what nobody wrote.

    A call that reads what lies around an input may well copy it: such outputs were written.
    """
    if reply.sensitive.startswith(AROUND_INPUT):
        return {fill: {} for fill in reply.by_fill}
    return {fill: read(number) for fill, number in reply.by_fill.items()}
