"""From run folders to what they show of one case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.errors import UsageError
from gpucheck.model.plan import ExpectedFailure
from gpucheck.model.record import Outcome
from gpucheck.records.writer import RecordWriter
from gpucheck.tools.bisect.observation import Observation, State, observe
from tests.conftest import Synthetic


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def seen(synthetic: Synthetic, folder: Path, outcomes: Any = None, label: str = "", **plan: Any) -> Observation:
    synthetic.write(folder, synthetic.run(synthetic.plan(**{"cases": 2, "ranks": 2, **plan}), outcomes))
    return observe(folder, label=label)


def test_a_pass(synthetic: Synthetic, folder: Path) -> None:
    observation = seen(synthetic, folder)
    assert (observation.state, observation.case, observation.failures, observation.words) == (
        State.PASSED,
        "matmul/0/exact",
        (),
        "passed",
    )
    assert observation.bits and observation.inputs


def test_the_first_failing_case_and_its_ranks(synthetic: Synthetic, folder: Path) -> None:
    observation = seen(synthetic, folder, {(1, 1): Outcome.MISMATCH})
    assert (observation.state, observation.case) == (State.FAILED, "matmul/1/exact")
    (failure,) = observation.failures
    assert (failure.title, failure.cause, failure.ranks) == ("undetermined: wrong output", "undetermined", (1,))
    assert failure.lines[0] == "y: row 1 of 2"
    assert observation.words == "undetermined: wrong output, rank 1"


def test_a_case_that_is_named_is_looked_at_alone(synthetic: Synthetic, folder: Path) -> None:
    outcomes = {(0, 0): Outcome.MISMATCH}
    assert seen(synthetic, folder, outcomes, label="matmul/1/exact").state is State.PASSED
    assert observe(folder, cases=("matmul/1/exact",)).case == "matmul/0/exact", "the first of all where none fails"


def test_causes_rest_on_experiments_only_where_they_may(synthetic: Synthetic, folder: Path) -> None:
    """Their answers change from run to run, and with them the cause of one and the same failure."""
    plan = synthetic.plan(cases=1)
    failed = synthetic.record(plan, 0, 0, Outcome.MISMATCH)
    again = replace(failed, experiment="repeat", asked=8)
    synthetic.write(folder, synthetic.run(plan, {(0, 0): failed}))
    writer = RecordWriter(folder, 0)
    for attempt in (again, again, *[replace(again, outcome=Outcome.PASS, mismatches=[])] * 2):
        writer.result(attempt)
    assert observe(folder).failures[0].cause == "undetermined"
    assert observe(folder, experiments=True).failures[0].cause == "decided anew in each process"


def test_several_ways_at_once(synthetic: Synthetic, folder: Path) -> None:
    observation = seen(synthetic, folder, {(0, 0): Outcome.MISMATCH, (0, 1): Outcome.CRASH})
    assert observation.words == "undetermined: wrong output, rank 0; crash, rank 1"


def test_ranks_that_disagree_fail_though_each_passed(synthetic: Synthetic, folder: Path) -> None:
    observation = seen(synthetic, folder, {(0, 1): {"digests": {"y": "other"}}}, cases=1)
    assert observation.words == "ranks disagree on equal inputs and kernels, ranks 0, 1"


def test_a_failure_that_the_scenario_expects_is_a_failure_all_the_same(synthetic: Synthetic, folder: Path) -> None:
    plan = synthetic.plan(cases=1)
    plan = replace(plan, steps=(replace(plan.steps[0], expect=ExpectedFailure()),))
    synthetic.write(folder, synthetic.run(plan, {(0, 0): Outcome.MISMATCH}))
    assert observe(folder).words == "undetermined: wrong output, rank 0"
    synthetic.write(folder.with_name("passes"), synthetic.run(plan))
    assert observe(folder.with_name("passes")).state is State.PASSED


@pytest.mark.parametrize(
    ("outcome", "state", "words"),
    [
        (Outcome.INAPPLICABLE, State.UNBUILDABLE, "not buildable: needs Triton 9"),
        (Outcome.HARNESS, State.BROKEN, "no answer: needs Triton 9"),
        (Outcome.LOST, State.BROKEN, "no answer: the rank ended before this case"),
    ],
)
def test_no_answer(synthetic: Synthetic, folder: Path, outcome: Outcome, state: State, words: str) -> None:
    observation = seen(synthetic, folder, {(0, 1): {"outcome": outcome, "message": "needs Triton 9"}}, cases=1)
    assert (observation.state, observation.words) == (state, words)


def test_a_library_that_cannot_be_imported(synthetic: Synthetic, folder: Path) -> None:
    frame = '  File "/x/gpucheck/library/adapters/__init__.py", line 67, in load\n    _import_library(root)\n'
    error = "SyntaxError: invalid syntax (x.py, line 1)"
    raised = {"outcome": Outcome.ERROR, "message": error, "traceback": frame}
    observation = seen(synthetic, folder, {(0, 0): raised}, cases=1, ranks=1)
    assert observation.state is State.UNBUILDABLE
    assert observation.words == f"not buildable: the library cannot be imported: {error}"


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ({"signal": 15}, "no answer: the run did not end well"),
        ({"changes": ["torch changed"]}, "no answer: software changed during the run"),
    ],
)
def test_a_run_that_proves_nothing(synthetic: Synthetic, folder: Path, ending: dict[str, Any], words: str) -> None:
    synthetic.write(folder, synthetic.run(synthetic.plan(), **ending))
    assert observe(folder).words == words


def test_a_run_without_the_case(synthetic: Synthetic, folder: Path) -> None:
    assert seen(synthetic, folder, label="gone").words == "no answer: the run has no case gone"


def test_equal_outputs_have_equal_bits(synthetic: Synthetic, folder: Path) -> None:
    plan = synthetic.plan(cases=1)
    observations = []
    for name, digest, inputs in (("a", "d", "i"), ("b", "d", "i"), ("c", "e", "i"), ("d", "d", "j")):
        end = {"digests": {"y": digest}, "inputs": inputs}
        synthetic.write(folder / name, synthetic.run(plan, {(0, 0): end}))
        observations.append(observe(folder / name))
    a, b, c, d = observations
    assert a.bits == b.bits == d.bits != c.bits
    assert a.inputs == b.inputs == c.inputs != d.inputs


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        observe(tmp_path)
