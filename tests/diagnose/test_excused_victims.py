"""What an excused failure costs other ranks does not leave a run open; what anybody else fails by still counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpucheck.cli.app import app
from gpucheck.diagnose.acceptance import faults_of
from gpucheck.diagnose.compare import Change, compare
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.finding import Acceptance
from gpucheck.model.plan import ExpectedFailure, Plan
from gpucheck.model.record import Outcome, Transfer, Verdict
from gpucheck.model.vocabulary import TransferFault
from gpucheck.records.run_folder import Run, read_run
from tests.conftest import Ends, Synthetic

JOINT = Conditions(process_group=TOGETHER)
CULPRIT = 1
GIVEN = Acceptance("known, a fix is on its way", "2099-12-31")
HANGS = {"outcome": Outcome.HANG, "message": "did not come to all_reduce number 1 of ranks 0-2"}
LEFT = {"outcome": Outcome.HARNESS, "message": "it ran this case with rank 1", "victim_of": CULPRIT}


def of(sender: int, receiver: int, fault: TransferFault) -> dict[str, Any]:
    """A wrong output with where it came from."""
    return {"outcome": Outcome.MISMATCH, "transfers": [Transfer(sender, receiver, fault, "y", 0, 1, 1, 4)]}


FAILURES: dict[str, Ends] = {
    "hang": {(0, 0): LEFT, (0, 1): HANGS, (0, 2): LEFT},
    "wrong sum": {(0, 0): of(0, 0, TransferFault.REDUCED), (0, 1): of(1, 1, TransferFault.COMPUTED)},
}
"""How a case that three ranks run together fails, by the fault of rank 1 alone."""


def stored(synthetic: Synthetic, folder: Path, plan: Plan, ends: Ends) -> Run:
    return read_run(synthetic.write(folder, synthetic.run(plan, ends)))


def accepting(run: Run) -> Plan:
    """The plan of a run with all that it failed by accepted."""
    found = [(finding, each) for finding in conclude(run).findings if finding.fails for each in finding.cases]
    assert found
    faults = [fault for finding, each in found for fault in faults_of(run, finding, each, GIVEN)]
    return replace(run.plan, accepted=tuple(faults))


def report(folder: Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON and text of the report of a stored run."""
    written = folder / "report.json"
    done = CliRunner().invoke(app, ["report", str(folder), "--json", str(written), "--write", f"{folder}/junit.xml"])
    return done.exit_code, json.loads(written.read_text()), done.output


@pytest.mark.parametrize("ends", FAILURES.values(), ids=FAILURES)
def test_an_accepted_failure_and_its_victims_alone_pass(synthetic: Synthetic, tmp_path: Path, ends: Ends) -> None:
    plan = synthetic.plan(cases=2, ranks=3, under=[JOINT])
    before = stored(synthetic, tmp_path / "before", plan, ends)
    assert report(tmp_path / "before")[0] == 1
    after = stored(synthetic, tmp_path / "after", accepting(before), ends)
    code, told, text = report(tmp_path / "after")
    assert (code, told["verdict"]) == (0, "PASS"), text
    victims = [finding for finding in told["findings"] if finding["title"] == "victim of another rank"]
    assert len(victims) == 1 and victims[0]["warns"], "it is still told"
    assert f"rank 1: {GIVEN.words}" in text
    assert "1 accepted finding" in text
    assert "<failure" not in (tmp_path / "after" / "junit.xml").read_text()
    assert not [row for row in compare(before, after).rows if row.change.regression]


def test_a_right_run_and_one_with_accepted_victims_differ_by_what_is_accepted(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    plan = synthetic.plan(cases=1, ranks=3, under=[JOINT])
    right = stored(synthetic, tmp_path / "right", plan, {})
    wrong = stored(synthetic, tmp_path / "wrong", plan, FAILURES["hang"])
    again = stored(synthetic, tmp_path / "again", accepting(wrong), FAILURES["hang"])
    assert {row.change for row in compare(right, again).rows} == {Change.ACCEPTED}


OTHERS: dict[str, tuple[Ends, Verdict]] = {
    "another case fails": ({(1, 2): Outcome.MISMATCH}, Verdict.FAIL),
    "another case has a victim of a rank that fails": ({(1, 0): {**LEFT, "victim_of": 2}, (1, 2): HANGS}, Verdict.FAIL),
    "a victim of nobody that is accepted": ({(1, 0): {**LEFT, "victim_of": 2}}, Verdict.INCONCLUSIVE),
    "a rank without a result in the same case": ({(0, 2): Outcome.HARNESS}, Verdict.INCONCLUSIVE),
    "another rank fails in the same case": ({(0, 2): {**HANGS, "message": "raised"}}, Verdict.FAIL),
    "the failure looks other": ({(0, 1): {**HANGS, "outcome": Outcome.CRASH}}, Verdict.FAIL),
}


@pytest.mark.parametrize(("more", "verdict"), OTHERS.values(), ids=OTHERS)
def test_whatever_else_is_wrong_counts(synthetic: Synthetic, tmp_path: Path, more: Ends, verdict: Verdict) -> None:
    plan = synthetic.plan(cases=2, ranks=3, under=[JOINT])
    before = stored(synthetic, tmp_path / "before", plan, FAILURES["hang"])
    stored(synthetic, tmp_path / "after", accepting(before), {**FAILURES["hang"], **more})
    code, told, text = report(tmp_path / "after")
    assert (code, told["verdict"]) == (1 if verdict is Verdict.FAIL else 3, verdict.value), text


def test_victims_of_a_failure_that_the_scenario_expects_do_not_count(synthetic: Synthetic, tmp_path: Path) -> None:
    plan = synthetic.plan(cases=1, ranks=2, under=[JOINT])
    (step,) = plan.steps
    plan = replace(plan, steps=(replace(step, expect=ExpectedFailure(ranks="others")),))
    ends = {(0, 0): of(0, 0, TransferFault.REDUCED), (0, 1): of(1, 1, TransferFault.COMPUTED)}
    stored(synthetic, tmp_path / "run", plan, ends)
    code, told, text = report(tmp_path / "run")
    assert (code, told["verdict"]) == (0, "PASS"), text
