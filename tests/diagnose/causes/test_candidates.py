"""What the further calls of a candidate showed, as a report tells it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.check_source import CheckSource, PairOptions, SourceKind
from gpucheck.model.record import Launch, Outcome, Verdict, Violation
from gpucheck.model.vocabulary import ViolationKind
from tests.conftest import Synthetic

LAUNCH = Launch("twice", 1, 0, ["cuda:0"], 7, "h", "sm_90", 0, 4, [1])
SOURCE = CheckSource(SourceKind.PROBLEM, ("matmul",), ("p.py", "c.py"), ("a", "b"))
TIMES = {"call": 0.001, "candidate": 0.001, "reference": 0.003}


def concluded(
    synthetic: Synthetic, *records: dict[str, Any], candidate: bool = True, source: CheckSource = SOURCE
) -> Any:
    """The conclusion about one rank's trials, each failed where it has violations."""
    plan = synthetic.plan(cases=len(records), check_sources=(source,) if candidate else ())
    run = synthetic.run(plan)
    for step, changes in enumerate(records):
        usual = Outcome.VIOLATION if changes.get("violations") else Outcome.PASS
        run.records[(step, 0)] = synthetic.record(plan, step, 0, **{"outcome": usual, **changes})
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


def test_a_published_rule_is_told_beside_our_verdict(synthetic: Synthetic) -> None:
    close = {"rules": {"kernelbench": {"close": True, "tolerance": 1e-4}}}
    far = {"rules": {"kernelbench": {"close": False, "tolerance": 1e-4}}}
    asked = replace(SOURCE, pair=PairOptions(rule="kernelbench"))
    fast = {"timings": {**TIMES, "reference": 0.02}}

    def notes(*records: dict[str, Any], source: CheckSource = asked) -> str:
        return "\n".join(concluded(synthetic, *records, source=source).notes)

    words = "matmul: by KernelBench's rule correct (2 / 2 trials within 0.0001); by ours right"
    assert words in notes(close, close)
    assert "; by ours not right" in notes(close, violated("cached", **close))
    assert "by KernelBench's rule not correct (1 / 2 trials within 0.0001); by ours right" in notes(close, far)
    assert "20.0 times as fast is more than the 10 that its rule believes" in notes({**close, **fast})
    assert "KernelBench" not in notes(close, close, source=SOURCE)


def test_a_title_says_which_precision_was_allowed(synthetic: Synthetic) -> None:
    lost = synthetic.mismatch(correlation=1.0, relative=1e-4, wrong=900, total=1000, bias=0.0, method="bound")
    record = {"mismatches": [lost], "outcome": Outcome.MISMATCH}
    for precision, title in (
        ("tf32", "lower precision than asked: tf32 is allowed"),
        ("", "lower precision than asked"),
    ):
        conclusion = concluded(synthetic, {**record, "precision": precision})
        assert conclusion.findings[0].title.endswith(title)


def test_what_there_is_to_say_of_a_right_candidate_is_a_note(synthetic: Synthetic) -> None:
    conclusion = concluded(synthetic, {"message": "ModelNew has no kernel of its own"})
    assert conclusion.verdict is Verdict.PASS and "matmul: ModelNew has no kernel of its own" in conclusion.notes
