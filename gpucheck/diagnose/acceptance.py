"""Which findings of a run are accepted faults: pure functions over a run and the faults that its plan holds.

A fault is the accepted one where all of this is as it was: the case with its conditions, the cause, what the failure
looks like and where (:mod:`gpucheck.diagnose.fault_signature`), the content of the library and, of the ranks that were
judged, those that show it. A kernel bug that a run repeats too seldom to be sure of is no other cause. The day that
counts is that of the run, so a stored run keeps its verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from gpucheck.diagnose.answers import every_time
from gpucheck.diagnose.causes.kernel_bug import KERNEL_BUG
from gpucheck.diagnose.causes.undetermined import UNDETERMINED
from gpucheck.diagnose.fault_signature import content, lies_elsewhere, looks_other, regions, shows
from gpucheck.diagnose.finding_cases import Key, split
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.accepted import AcceptedFault
from gpucheck.model.canary import CHECK
from gpucheck.model.errors import UsageError
from gpucheck.model.finding import Acceptance, FailedCase, Finding
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

NEVER = {
    ViolationKind.FALLBACK: "no kernel under test was launched, so nothing was checked",
    ViolationKind.NO_REFERENCE: "the check names no output to judge, so nothing was checked",
}
"""Violations that cannot be accepted, and why."""
UNJUDGED = (Outcome.LOST, Outcome.HARNESS, Outcome.INAPPLICABLE)
MOST_NAMED = 3  # cases

Place = tuple[int, int, int]
"""Number of a finding, step and rank."""


@dataclass(frozen=True)
class Accepted:
    """What became of the findings of a run."""

    findings: list[Finding]  # all of them, the accepted ones at the end
    keys: frozenset[Key]  # step and rank of what failed as accepted, in each of its findings
    notes: list[str]


def accept(run: Run, findings: Sequence[Finding]) -> Accepted:
    """Takes the accepted faults out of what fails a run, and says which show no longer or cannot be accepted."""
    if not run.plan.accepted:
        return Accepted(list(findings), frozenset(), [])
    steps = {step.label: number for number, step in enumerate(run.plan.steps)}
    usable = [fault for fault in run.plan.accepted if not refused(fault)]
    compared: dict[Place, dict[int, list[str]]] = {}
    for place in _failures(run, findings, steps):
        finding, label = findings[place[0]], run.plan.steps[place[1]].label
        faults = ((index, fault) for index, fault in enumerate(usable) if fault.case == label)
        compared[place] = {index: _differences(run, finding, place, fault) for index, fault in faults}
    missing = [_missing(run, index, fault, compared, steps) for index, fault in enumerate(usable)]
    fitting: dict[Place, AcceptedFault] = {}
    changed: dict[Place, str] = {}
    for place, candidates in compared.items():
        differences = {index: differing or missing[index] for index, differing in candidates.items()}
        index = min(differences, key=lambda index: len(differences[index]), default=-1)
        if index >= 0 and not differences[index]:
            fitting[place] = usable[index]
        elif index >= 0:
            words = f"not as accepted until {usable[index].until} ({usable[index].reason})"
            changed[place] = f"{words}: {'; '.join(differences[index])}"
    made = [part for number in range(len(findings)) for part in _parts(run, findings, number, fitting, changed)]
    ordered = sorted(made, key=lambda finding: finding.accepted is not None)
    failing = {(step, rank) for number, step, rank in compared if (number, step, rank) not in fitting}
    return Accepted(ordered, frozenset((step, rank) for _, step, rank in fitting) - failing, _notes(run, steps))


def refused(fault: AcceptedFault) -> str:
    """Why a fault cannot be accepted, whoever wrote it down; "" where it can."""
    if fault.case.partition("/")[0] == CHECK:
        return "a canary is wrong on purpose: that it is found proves that the run can find faults"
    if fault.outcome not in (outcome.value for outcome in Outcome if outcome.failed):
        return f"{fault.outcome} is no answer of the code under test"
    return next((why for kind, why in NEVER.items() if any(word.partition(":")[0] == kind for word in fault.shows)), "")


def faults_of(run: Run, finding: Finding, failed_case: FailedCase, given: Acceptance) -> list[AcceptedFault]:
    """The faults to accept of one case of a finding: one for all ranks that show it alike."""
    step = next(number for number, step in enumerate(run.plan.steps) if step.label == failed_case.case)
    found: list[AcceptedFault] = []
    for rank in failed_case.ranks:
        record = run.records[(step, rank)]
        fault = AcceptedFault(
            case=failed_case.case,
            ranks=[],
            cause=finding.cause or finding.title,
            outcome=record.outcome.value,
            shows=shows(record),
            regions=regions(record),
            seed=run.plan.seed,
            content=content(run.plan, step),
            reason=given.reason,
            until=given.until,
        )
        alike = next((other for other in found if replace(other, ranks=[]) == fault), None)
        if alike is None:
            found.append(replace(fault, ranks=[rank]))
        else:
            alike.ranks.append(rank)
    return found


def day_of(plan: Plan) -> str:
    """The day on which a run began, in UTC: ``2026-11-29``.

    Raises:
        UsageError: the plan names no time.
    """
    try:
        return datetime.fromtimestamp(plan.created, timezone.utc).date().isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        raise UsageError(f"plan.json is damaged: created is {plan.created!r}, expected seconds since 1970") from None


def _failures(run: Run, findings: Sequence[Finding], steps: Mapping[str, int]) -> Iterator[Place]:
    """What could be accepted: failed records in findings that fail the run."""
    for number, finding in enumerate(findings):
        for failed_case in finding.cases if finding.fails else ():
            step = steps.get(failed_case.case)
            for rank in failed_case.ranks if step is not None else ():
                if step is not None and run.records[(step, rank)].outcome.failed:
                    yield number, step, rank


def _differences(run: Run, finding: Finding, place: Place, fault: AcceptedFault) -> list[str]:
    """What is not as it was accepted, in words; nothing where it is that fault."""
    _, step, rank = place
    found, day, now = [], day_of(run.plan), content(run.plan, step)
    if day > fault.until:
        found.append(f"that day has passed, this run is of {day}")
    if rank not in fault.ranks:
        found.append(f"it was accepted on {rank_list(fault.ranks)} only")
    if not _same_cause(run, run.records[(step, rank)], finding.cause or finding.title, fault.cause):
        found.append(f"its cause was {fault.cause}")
    for name, was in fault.content.items():
        if now.get(name) != was:
            found.append(f"the content of {name} was {was[:12]}, is {now.get(name, 'none')[:12]}")
    same_seed = run.plan.seed == fault.seed
    for record in (run.records[(step, rank)], *run.further.get((step, rank), ())):
        found += looks_other(record, fault, same_seed=same_seed) or lies_elsewhere(record, fault, same_seed=same_seed)
    return list(dict.fromkeys(found))


def _same_cause(run: Run, record: Record, now: str, was: str) -> bool:
    if (was, now) != (KERNEL_BUG.title, UNDETERMINED.title):
        return was == now
    return every_time(run, record)


def _missing(
    run: Run, index: int, fault: AcceptedFault, compared: Mapping[Place, Mapping[int, list[str]]], steps: dict[str, int]
) -> list[str]:
    """That ranks which were judged do not show a fault that was accepted on them, in words."""
    step = steps.get(fault.case)
    if step is None:
        return []
    judged = {r for r in fault.ranks if r in run.ranks and run.records[(step, r)].outcome not in UNJUDGED}
    away = judged - {rank for (_, _, rank), candidates in compared.items() if candidates.get(index) == []}
    return [f"it was accepted on {rank_list(fault.ranks)} and does not show so on {rank_list(away)}"] if away else []


def _parts(
    run: Run,
    findings: Sequence[Finding],
    number: int,
    fitting: Mapping[Place, AcceptedFault],
    changed: Mapping[Place, str],
) -> list[Finding]:
    """A finding: what fails of it, then what is accepted, by reason and day."""
    marks = {place[1:]: Acceptance(fault.reason, fault.until) for place, fault in fitting.items() if place[0] == number}
    differences = {place[1:]: words for place, words in changed.items() if place[0] == number}
    parts = split(run, findings[number], marks, differences) if findings[number].fails else [(None, findings[number])]
    return [replace(part, fails=False, warns=True, accepted=mark) if mark else part for mark, part in parts]


def _notes(run: Run, steps: dict[str, int]) -> list[str]:
    """What is to be said of accepted faults that are not there, or cannot be accepted."""
    notes, absent = [], []
    for fault in run.plan.accepted:
        step, where = steps.get(fault.case), f" in {fault.file}" * bool(fault.file)
        known = [run.records[(step, rank)] for rank in fault.ranks if rank in run.ranks] if step is not None else []
        named = f"{fault.case} ({fault.cause}), {rank_list(fault.ranks)}"
        unjudged = [record.rank for record in known if record.outcome in (Outcome.LOST, Outcome.HARNESS)]
        if why := refused(fault):
            notes.append(f"accepted fault ignored{where}: {named}: {why}")
        elif unjudged:
            notes.append(f"accepted fault of {fault.case}: {rank_list(unjudged)} gave no result; that is not accepted")
        elif known and all(record.outcome is Outcome.PASS for record in known):
            notes.append(f"accepted fault shows no longer: {named}: take it out{where}")
        elif step is None:
            absent.append(fault.case)
    names = list(dict.fromkeys(absent))
    if names:
        shown = ", ".join(names[:MOST_NAMED]) + ", ..." * (len(names) > MOST_NAMED)
        notes.append(f"accepted faults of {len(names)} case(s) that this run does not have: {shown}")
    return list(dict.fromkeys(notes))
