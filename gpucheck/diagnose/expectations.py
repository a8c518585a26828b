"""What a scenario says must fail, held against what did: strict, a failure that stays away is a failure too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpucheck.diagnose.finding_cases import Key, by_step, failed_case
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

ANSWERED = (Outcome.MISMATCH, Outcome.VIOLATION, Outcome.ERROR)
"""How a case may fail where a scenario says that it must and not by what."""


@dataclass(frozen=True)
class Settled:
    """The outcome of the comparison."""

    expected: frozenset[Key]  # failed just as the scenario says
    missing: list[Finding]  # passed though they had to fail


def settle(run: Run, causes: Mapping[Key, str]) -> Settled:
    """Compares every record of a step that must fail.

    A failure by another cause than the expected one is not settled: it stays the finding it is. So does a process that
    died or gave no answer where no cause is expected: that says nothing about the kernel.

    Args:
        causes: of the records that a rule recognised.
    """
    expected, passed = set(), []
    for key, record in sorted(run.records.items()):
        if not _must_fail(run, record):
            continue
        wanted = run.plan.steps[record.step].expect
        assert wanted is not None
        if record.outcome is Outcome.PASS:
            passed.append(key)
        elif record.outcome in ANSWERED if not wanted.cause else causes.get(key) == wanted.cause:
            expected.add(key)
    return Settled(frozenset(expected), _missing(run, passed))


def _must_fail(run: Run, record: Record) -> bool:
    expect = run.plan.steps[record.step].expect
    return expect is not None and expect.includes(run.plan.local_rank(record.rank))


def _missing(run: Run, keys: list[Key]) -> list[Finding]:
    steps = by_step(keys)
    if not steps:
        return []
    cases = []
    for step, ranks in steps.items():
        expect = run.plan.steps[step].expect
        cause = f" with cause {expect.cause!r}" if expect and expect.cause else ""
        cases.append(failed_case(run, step, ranks, [f"passed, though the scenario expects a failure{cause}"]))
    return [
        Finding(
            "passed, though expected to fail",
            fails=True,
            ranks=sorted({rank for ranks in steps.values() for rank in ranks}),
            rows=list(dict.fromkeys(run.plan.steps[step].case.row for step in steps)),
            cases=cases,
            fix="the fault is gone, or the stress that shows it has no effect here: take the expectation out of the "
            "scenario once you know which",
        )
    ]
