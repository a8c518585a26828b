"""From what a child answered to a record: outputs against references, conduct, digests; all of it on the CPU."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from gpucheck import checks
from gpucheck.model.record import Launch, Outcome, Record
from gpucheck.verify import digest
from gpucheck.verify.expected import Axes, Expected
from gpucheck.verify.judge import Judgement, judge
from gpucheck.worker.conduct import observed_violations
from gpucheck.worker.protocol import Reply, outputs_file
from gpucheck.worker.runner import Attempt, words
from gpucheck.worker.store import Store

Keep = Callable[[dict[str, Tensor], dict[str, Expected], dict[str, Axes]], None]
"""Takes outputs, their references and the names of their axes, of which nothing is left after the call."""


def finished(store: Store, attempt: Attempt, keep: Keep | None = None) -> Record:
    """The record of an attempt, whose files of outputs are removed.

    Args:
        keep: is given the outputs that the record tells of.
    """
    try:
        record = attempt.record if attempt.reply is None else _judged(store, attempt, attempt.reply, keep)
        if record.outcome.failed and not record.inputs:
            record = replace(record, inputs=store.input_digest(attempt.key, attempt.step.case))
        return record
    except Exception as error:
        message = words(error)
        return replace(attempt.record, outcome=Outcome.HARNESS, message=message, traceback=traceback.format_exc())
    finally:
        outputs = Path(attempt.outputs)
        for path in (outputs, *outputs.parent.glob(f"{outputs.name}.*")):
            path.unlink(missing_ok=True)


@dataclass
class _Launches:
    """The launches of a case, judged one distinct output at a time."""

    outputs: dict[str, Tensor] = field(default_factory=dict)  # of the first, or of the first wrong one
    found: Judgement = field(default_factory=Judgement)  # of the same
    wrong: int = 0


def _judged(store: Store, attempt: Attempt, reply: Reply, keep: Keep | None) -> Record:
    launches = [Launch(**launch) for launch in reply.launches]
    seconds = {**attempt.record.seconds, **reply.seconds}
    record = replace(attempt.record, device=reply.device, launches=launches, stream=reply.stream, seconds=seconds)
    if reply.status == "inapplicable":
        return replace(record, outcome=Outcome.INAPPLICABLE, message=reply.message)
    if reply.status == "error":
        return replace(record, outcome=Outcome.ERROR, message=reply.message, traceback=reply.traceback)
    begin = time.perf_counter()
    expected = store.reference(attempt.key, attempt.step.case)
    waited = time.perf_counter() - begin
    inputs = torch.load(store.inputs(attempt.key, attempt.step.case), mmap=True, weights_only=True)
    axes = checks.load(attempt.step.case.check).axes(attempt.step.case, inputs)
    judged = _judge_launches(attempt, reply, expected, axes)
    if keep:
        keep(judged.outputs, expected, axes)
    violations = judged.found.violations + observed_violations(reply, launches)
    outcome = Outcome.MISMATCH if judged.found.mismatches else Outcome.VIOLATION if violations else Outcome.PASS
    conditions = attempt.step.conditions
    often = conditions.repeat > 1 or conditions.concurrency > 1
    record = replace(
        record,
        outcome=outcome,
        message=reply.message,
        mismatches=judged.found.mismatches,
        violations=violations,
        digests={name: digest.whole(value) for name, value in judged.outputs.items()},
        tiles={name: digest.tiles(value) for name, value in judged.outputs.items()},
        inputs=store.input_digest(attempt.key, attempt.step.case),
        tightness=judged.found.tightness,
        bounds={name: item.basis for name, item in expected.items() if item.basis},
        speed=reply.speed,
        cost=reply.cost,
        ceilings=reply.ceilings,
        repeats=len(reply.digests) if often else 1,
        wrong=judged.wrong if often else min(judged.wrong, 1),
        distinct=max(1, len(set(reply.digests))),
    )
    spent = time.perf_counter() - begin - waited
    return replace(record, seconds={**record.seconds, "reference": waited, "judge": spent})


def _judge_launches(attempt: Attempt, reply: Reply, expected: dict[str, Expected], axes: dict[str, Axes]) -> _Launches:
    judged = _Launches()
    for number, whole in enumerate(reply.saved or [""]):
        outputs = torch.load(outputs_file(attempt.outputs, number), mmap=True, weights_only=True)
        found = judge(outputs, expected, axes)
        bad = bool(found.mismatches or found.violations)
        if not number or (bad and not judged.wrong):
            judged.outputs, judged.found = outputs, found
        judged.wrong += max(1, reply.digests.count(whole)) * bad
    return judged
