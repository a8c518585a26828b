"""What the further calls of a candidate showed, as a report tells it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.model.record import Launch, Outcome, Verdict, Violation
from gpucheck.model.vocabulary import ViolationKind
from tests.conftest import Synthetic

LAUNCH = Launch("twice", 1, 0, ["cuda:0"], 7, "h", "sm_90", 0, 4, [1])
SOURCE = CheckSource(SourceKind.PROBLEM, ("matmul",), ("p.py", "c.py"), ("a", "b"))
TIMES = {"call": 0.001, "candidate": 0.001, "reference": 0.003}


def concluded(synthetic: Synthetic, *records: dict[str, Any], candidate: bool = True) -> Any:
    """The conclusion about one rank's trials, each failed where it has violations."""
    plan = synthetic.plan(cases=len(records), check_sources=(SOURCE,) if candidate else ())
    run = synthetic.run(plan)
    for step, changes in enumerate(records):
        outcome = Outcome.VIOLATION if changes.get("violations") else Outcome.PASS
        run.records[(step, 0)] = synthetic.record(plan, step, 0, outcome, **changes)
    return conclude(run)


def violated(kind: str, **more: Any) -> dict[str, Any]:
    return {"violations": [Violation(kind, "where")], **more}


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("calls differ", "answer not from its inputs"),
        ("order", "missing stream order: launches on a stream that nobody waits for"),
        ("process", "right output with a violation"),
    ],
)
def test_what_a_supervisor_saw_names_the_finding(synthetic: Synthetic, kind: str, title: str) -> None:
    (finding,) = concluded(synthetic, violated(kind, launches=[LAUNCH], stream=0)).findings
    assert finding.title == title and f"{kind}: where" in finding.cases[0].lines
    if kind == "order":
        assert "twice launched on stream 7, its inputs come on stream 0" in finding.cases[0].lines


def test_a_candidate_that_keeps_answers_keeps_them_in_all_of_its_trials(synthetic: Synthetic) -> None:
    trials = violated("cached"), violated("launches"), violated("fallback"), violated("reused")
    assert {finding.title for finding in concluded(synthetic, *trials).findings} == {"answer not from its inputs"}
    others = {finding.title for finding in concluded(synthetic, *trials, candidate=False).findings}
    assert len(others) == 4, "cases of the library have nothing to do with each other"


def test_a_candidate_that_fails_anywhere_has_no_time(synthetic: Synthetic) -> None:
    right = concluded(synthetic, {"timings": TIMES}, {})
    assert right.notes == ["matmul: 1.000 ms a call, Model in torch 3.000 ms: 3.0 times as fast (median of 1)"]
    assert concluded(synthetic, {"timings": TIMES}, violated("inputs")).notes == []


def test_a_candidate_is_timed_apart(synthetic: Synthetic) -> None:
    from gpucheck.worker.protocol import allowance

    plan = synthetic.plan(cases=1, check_sources=(SOURCE,))
    assert allowance(plan, plan.steps[0], "") is None
    assert allowance(replace(plan, check_sources=()), plan.steps[0], "") is not None


BY_ITSELF_NO_CAUSE = {
    ViolationKind.TUNING_DIFFERS,  # takes a fresh process that shows it again
    ViolationKind.NO_REFERENCE,  # the check is at fault
    ViolationKind.PROCESS,  # what the process did cannot be seen
    ViolationKind("of a check of one's own"),
}


@pytest.mark.parametrize("kind", [*ViolationKind, ViolationKind("of a check of one's own")])
def test_every_kind_of_violation_fails_a_run_by_name_and_most_name_a_cause(
    synthetic: Synthetic, kind: ViolationKind
) -> None:
    conclusion = concluded(synthetic, violated(kind))
    assert conclusion.verdict is Verdict.FAIL
    (finding,) = conclusion.findings
    assert bool(finding.cause) == (kind not in BY_ITSELF_NO_CAUSE)
    told = [finding.title, *finding.cases[0].lines]
    assert f"{kind}: where" in told or (kind is ViolationKind.DEVICE and "outputs are right" in told)
