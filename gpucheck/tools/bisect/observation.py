"""What one run showed of the case under search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from gpucheck.diagnose.buildable import unbuildable
from gpucheck.diagnose.causes.undetermined import UNDETERMINED
from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import Run, read_run


class State(str, Enum):
    """How the case fared in one run."""

    PASSED = "passed"
    FAILED = "failed"
    UNBUILDABLE = "not buildable"  # the library cannot be had, imported or asked for this here
    BROKEN = "no answer"  # the run itself went wrong


@dataclass(frozen=True)
class Failure:
    """One way in which the case failed."""

    title: str  # of the finding
    cause: str  # of the finding
    ranks: tuple[int, ...]
    lines: tuple[str, ...] = ()  # evidence, in words

    def alike(self, other: Failure) -> bool:
        """Whether two are of one kind: a run with too little evidence for a cause has at least the same symptom."""
        if UNDETERMINED.title in (self.cause, other.cause):
            return self.title.removeprefix(self.cause) == other.title.removeprefix(other.cause)
        return (self.title, self.cause) == (other.title, other.cause)

    @property
    def words(self) -> str:
        return f"{self.title}, {rank_list(self.ranks)}"


@dataclass(frozen=True)
class Observation:
    """The case in one run."""

    state: State
    case: str = ""  # label: id and conditions
    failures: tuple[Failure, ...] = ()
    reason: str = ""  # why there is no answer
    bits: str = ""  # hash of all outputs of all ranks, where the case passed
    inputs: str = ""  # hash of all inputs, likewise
    folder: str = ""  # of the run, relative to that of the search; "" where none was made
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """What was seen, on one line."""
        if self.state is State.FAILED:
            return "; ".join(failure.words for failure in self.failures)
        return f"{self.state.value}: {self.reason}" if self.reason else self.state.value


def observe(folder: Path, cases: Sequence[str] = (), label: str = "", *, experiments: bool = False) -> Observation:
    """Reads a run folder.

    Args:
        cases: ids of the cases that may be meant; empty for any.
        label: the case that is meant. Without one it is the first that fails, else the first of all.
        experiments: whether causes may rest on the run's experiments. Their answers may change from run to run, and
            with them the cause of one and the same failure, so all runs that are compared must be read alike.

    Raises:
        UsageError: the folder is no run folder.
    """
    run = unexpecting(read_run(folder))
    run = run if experiments else replace(run, experiments={})
    findings = [finding for finding in conclude(run).findings if finding.fails]
    label = label or first_failing(run, findings, cases) or run.plan.steps[0].label
    records = [record for (step, _), record in sorted(run.records.items()) if run.plan.steps[step].label == label]
    outcomes = {record.outcome for record in records}
    failures = tuple(_failures(findings, label))
    reason = unbuildable(run)
    if reason:
        return Observation(State.UNBUILDABLE, label, reason=reason)
    if failures:
        return Observation(State.FAILED, label, failures)
    if outcomes == {Outcome.PASS} and _ended_well(run):
        inputs = _hash([(record.rank, record.inputs) for record in records])
        return Observation(State.PASSED, label, bits=_hash([(r.rank, r.digests) for r in records]), inputs=inputs)
    silent = [record for record in records if record.outcome is not Outcome.PASS]
    if outcomes and outcomes <= {Outcome.PASS, Outcome.INAPPLICABLE} and silent:
        return Observation(State.UNBUILDABLE, label, reason=silent[0].message)
    return Observation(
        State.BROKEN, label, reason=silent[0].message if silent else _why_open(run, label, bool(records))
    )


def unexpecting(run: Run) -> Run:
    """The run as if no failure were expected, accepted or excused: a search goes by what happened."""
    steps = tuple(replace(step, expect=None) for step in run.plan.steps)
    return replace(run, plan=replace(run.plan, steps=steps, accepted=(), judge="both"))


def first_failing(run: Run, findings: Sequence[Finding], cases: Sequence[str]) -> str:
    """The label of the first case with a finding, of these cases where some are named; "" without one."""
    labels = {step.label for step in run.plan.steps if not cases or step.case.id in cases}
    shown = (failed_case.case for finding in findings for failed_case in finding.cases)
    return next((case for case in shown if case in labels), "")


def _failures(findings: Sequence[Finding], label: str) -> list[Failure]:
    return [
        Failure(finding.title, finding.cause, tuple(sorted(failed_case.ranks)), tuple(failed_case.lines))
        for finding in findings
        for failed_case in finding.cases
        if failed_case.case == label
    ]


def _ended_well(run: Run) -> bool:
    return bool(run.outcome) and not run.outcome.get("signal") and not run.outcome.get("changes")


def _why_open(run: Run, label: str, planned: bool) -> str:
    if not planned:
        return f"the run has no case {label}"
    return "software changed during the run" if run.outcome.get("changes") else "the run did not end well"


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()
