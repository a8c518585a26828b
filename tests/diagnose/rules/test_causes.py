"""Rules on synthetic matrices of ranks and experiments: what proves a cause, what does not, what stays open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gpucheck.diagnose.causes import CAUSES
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import Conditions
from gpucheck.model.finding import Finding
from gpucheck.model.record import Launch, Outcome, Record, Verdict, Violation
from gpucheck.records.folder import Run

if TYPE_CHECKING:
    from tests.conftest import Synthetic

WRONG, RIGHT = Outcome.MISMATCH, Outcome.PASS
OUTSIDE = "access outside of tensors"
Fails = Mapping[int, Mapping[str, Any]]
"""Rank -> changes of its failing record."""


class Matrix:
    """One case on some ranks; ranks that nothing is said of pass."""

    def __init__(self, synthetic: Synthetic, ranks: int = 4, **conditions: Any) -> None:
        self.synthetic = synthetic
        plan = synthetic.plan(cases=1, ranks=ranks)
        step = replace(plan.steps[0], conditions=Conditions(**conditions))
        self.run: Run = synthetic.run(replace(plan, steps=(step,)))

    def fails(self, *ranks: int, outcome: Outcome = WRONG, **changes: Any) -> Matrix:
        bits = {"digests": {"y": changes.pop("bits", "bad")}, "wrong": 1} if outcome is WRONG else {}
        for rank in ranks:
            self.run.records[(0, rank)] = self.record(rank, outcome, **{**bits, **changes})
        return self

    def tried(self, rank: int, **answers: Any) -> Matrix:
        """Adds experiments by name; a name with blanks has underscores here."""
        known = self.run.experiments.setdefault((0, rank), {})
        for name, answer in answers.items():
            outcome, changes = answer if isinstance(answer, tuple) else (answer, {})
            if outcome is WRONG and "wrong" not in changes:
                changes = {"wrong": changes.get("repeats", 1), **changes}
            known[name.replace("_", " ")] = self.record(rank, outcome, experiment=name.replace("_", " "), **changes)
        return self

    def repeats(self, rank: int, wrong: int = 5, of: int = 5, distinct: int = 1) -> Matrix:
        outcome = WRONG if wrong else RIGHT
        return self.tried(rank, repeat=(outcome, {"wrong": wrong, "repeats": of, "distinct": distinct}))

    def record(self, rank: int, outcome: Outcome, **changes: Any) -> Record:
        made: Record = self.synthetic.record(self.run.plan, 0, rank, outcome, **changes)
        return made

    def findings(self) -> list[Finding]:
        conclusion = conclude(self.run)
        assert conclusion.verdict is Verdict.FAIL
        assert all(finding.cause in CAUSES or not finding.cause for finding in conclusion.findings)
        return conclusion.findings

    def finding(self) -> Finding:
        (finding,) = self.findings()
        return finding


def told(finding: Finding) -> str:
    return "\n".join(finding.evidence)


class TestKernelBug:
    def test_all_ranks_with_the_same_bits(self, synthetic: Synthetic) -> None:
        finding = Matrix(synthetic).fails(0, 1, 2, 3).finding()
        assert (finding.cause, finding.ranks) == ("kernel bug", [0, 1, 2, 3])

    def test_not_where_one_rank_is_right(self, synthetic: Synthetic) -> None:
        finding = Matrix(synthetic).fails(1, 2, 3).finding()
        assert (finding.cause, finding.ranks) == ("undetermined", [1, 2, 3])

    def test_not_where_one_rank_has_other_bits(self, synthetic: Synthetic) -> None:
        findings = Matrix(synthetic).fails(0, 1, 2).fails(3, bits="others").findings()
        assert {finding.cause for finding in findings} == {"undetermined"}

    def test_ranks_that_judged_nothing_do_not_count(self, synthetic: Synthetic) -> None:
        matrix = Matrix(synthetic).fails(0, 1, 2).fails(3, outcome=Outcome.LOST)
        assert [finding.cause for finding in matrix.findings()] == ["kernel bug", ""]

    def test_one_gpu_alone_cannot_tell_and_names_what_would(self, synthetic: Synthetic) -> None:
        finding = Matrix(synthetic, ranks=1).fails(0).repeats(0).finding()
        assert finding.cause == "undetermined" and "--nproc 2" in finding.remedy

    def test_one_rank_on_the_cpu_has_no_gpu_to_blame(self, synthetic: Synthetic) -> None:
        matrix = Matrix(synthetic, ranks=1).fails(0)
        matrix.run.plan = replace(matrix.run.plan, device="cpu")
        assert matrix.finding().cause == "kernel bug"


class TestProcessGroup:
    def test_right_without(self, synthetic: Synthetic) -> None:
        matrix = Matrix(synthetic, ranks=2, process_group="initialised").fails(0, 1, bits="x")
        for rank in (0, 1):
            matrix.repeats(rank).tried(rank, no_group=RIGHT, other_rank=WRONG)
        finding = matrix.finding()
        assert (finding.cause, finding.ranks) == ("dependence on the process group", [0, 1])
        assert "right without a process group" in told(finding)

    def test_the_plan_itself_may_have_tried_it(self, synthetic: Synthetic) -> None:
        plan = synthetic.plan(cases=1, ranks=2)
        (step,) = plan.steps
        plan = replace(plan, steps=(step, replace(step, conditions=Conditions(process_group="initialised"))))
        run = synthetic.run(plan, {(1, 1): synthetic.record(plan, 1, 1, WRONG, digests={"y": "bad"})})
        (finding,) = conclude(run).findings
        assert (finding.cause, finding.ranks) == ("dependence on the process group", [1])
        both = synthetic.run(plan, {(n, 1): synthetic.record(plan, n, 1, WRONG, digests={"y": "b"}) for n in (0, 1)})
        assert {finding.cause for finding in conclude(both).findings} == {"undetermined"}, "wrong without one too"

    def test_a_case_without_a_group_cannot_depend_on_it(self, synthetic: Synthetic) -> None:
        assert Matrix(synthetic).fails(1).repeats(1).finding().cause == "undetermined"


@pytest.mark.parametrize(
    ("conditions", "answers", "cause"),
    [
        ({"concurrency": 4}, {"one_thread": RIGHT}, "state shared by threads"),
        ({"late": True}, {"synchronised": RIGHT}, "missing stream order"),
        ({"consumer": "prompt"}, {"waits": RIGHT}, "missing stream order"),
        ({"consumer": "delayed"}, {"waits": RIGHT}, "output overwritten by a later call"),
        ({}, {"fresh_cache": RIGHT, "synchronised": WRONG}, "stale or mixed kernel cache"),
        ({}, {"alone": RIGHT, "fresh_cache": WRONG}, "interference between ranks"),
        ({}, {"other_rank": RIGHT, "other_device": WRONG}, "environment of a rank"),
        ({}, {"other_rank": RIGHT}, "environment of a rank"),
        ({}, {"other_rank": WRONG, "other_device": RIGHT}, "suspect GPU"),
        ({}, {"other_rank": RIGHT, "other_device": RIGHT}, "undetermined"),
        ({}, {"other_device": RIGHT}, "undetermined"),
        ({}, {}, "undetermined"),
    ],
)
def test_one_changed_condition_that_makes_it_right(
    synthetic: Synthetic, conditions: dict[str, Any], answers: dict[str, Any], cause: str
) -> None:
    matrix = Matrix(synthetic, **conditions).fails(2).repeats(2).tried(2, **answers)
    finding = matrix.finding()
    assert (finding.cause, finding.ranks) == (cause, [2])
    assert "5 of 5 repeats in a fresh process wrong, the same bits each time" in told(finding)
    assert "ranks 0, 1, 3 clean" in finding.sightings[0].lines
    matrix.run.experiments[(0, 2)].pop("repeat")
    assert matrix.finding().cause == "undetermined", "one failure that nobody repeated proves nothing"
    assert "--experiments" in matrix.finding().remedy


def test_a_failure_that_did_not_come_again_is_never_the_gpus(synthetic: Synthetic) -> None:
    matrix = Matrix(synthetic).fails(2).repeats(2, wrong=0)
    finding = matrix.tried(2, other_rank=RIGHT, other_device=RIGHT, alone=RIGHT).finding()
    assert finding.cause == "undetermined" and "repeat = 200" in finding.remedy
    assert "right in all of 5 repeats" in told(finding)


@pytest.mark.parametrize(("wrong", "runs", "cause"), [(12, 40, "undetermined"), (12, 70, "state shared by threads")])
def test_a_fault_that_comes_and_goes_must_stay_away_often_enough(
    synthetic: Synthetic, wrong: int, runs: int, cause: str
) -> None:
    """A tenth of the launches fail: 40 right ones may be luck, 70 are not."""
    matrix = Matrix(synthetic, concurrency=4).fails(1, wrong=wrong, repeats=120)
    matrix.repeats(1, wrong=wrong, of=120).tried(1, one_thread=(RIGHT, {"repeats": runs}))
    finding = matrix.finding()
    assert finding.cause == cause
    assert "rate 10%, 95% interval 6% to 17%" in told(finding)


def test_repeats_that_differ_are_a_race(synthetic: Synthetic) -> None:
    differ = [Violation("repeats differ", "equal inputs in equal memory gave other bits")]
    finding = Matrix(synthetic).fails(0, outcome=Outcome.VIOLATION, violations=differ).finding()
    assert finding.cause == "race or uninitialised read"
    assert Matrix(synthetic).fails(0).repeats(0, distinct=3).finding().cause == "race or uninitialised read"


def test_a_race_is_no_kernel_bug_though_all_ranks_have_it(synthetic: Synthetic) -> None:
    matrix = Matrix(synthetic, ranks=2).fails(0, 1)
    for rank in (0, 1):
        matrix.repeats(rank, distinct=4)
    assert matrix.finding().cause == "race or uninitialised read"


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("guard", "access outside of tensors: writes"),
        ("passes differ", "access outside of tensors: reads"),
        ("fallback", "fallback: kernel under test not launched"),
        ("idle", "fallback: answer not made by the kernels launched"),
        ("cached", "answer not from its inputs"),
        ("inputs", "changes its inputs"),
        ("alias", "output in the memory of an input"),
        ("settings", "leaves settings changed"),
        ("launches", "fallback: kernel under test launched less often than needed"),
    ],
)
def test_conduct_that_speaks_for_itself(synthetic: Synthetic, kind: str, title: str) -> None:
    for outcome in (Outcome.VIOLATION, WRONG):
        matrix = Matrix(synthetic, ranks=2).fails(0, 1, outcome=outcome, violations=[Violation(kind, "where")])
        finding = matrix.finding()
        assert finding.title == title and f"{kind}: where" in finding.sightings[0].lines


def test_the_kernel_under_test_comes_before_those_that_follow_it(synthetic: Synthetic) -> None:
    violations = [Violation("launches", "two of four"), Violation("fallback", "no sum over a token's rows")]
    finding = Matrix(synthetic, ranks=2).fails(0, 1, outcome=Outcome.VIOLATION, violations=violations).finding()
    assert finding.title == "fallback: kernel under test launched less often than needed"


@pytest.mark.parametrize("kind", ["output", "layout", "configuration"])
def test_another_form_or_configuration_than_asked_for_says_less_than_wrong_numbers(
    synthetic: Synthetic, kind: str
) -> None:
    matrix = Matrix(synthetic, ranks=2).fails(0, 1, outcome=Outcome.VIOLATION, violations=[Violation(kind, "where")])
    title = "not the configuration asked for" if kind == "configuration" else "output not as asked"
    assert matrix.finding().title == title
    matrix = Matrix(synthetic, ranks=2).fails(0, 1, outcome=WRONG, violations=[Violation(kind, "where")])
    assert matrix.finding().cause != title


def test_memory_that_is_handed_out_twice_is_overwritten(synthetic: Synthetic) -> None:
    for outcome in (Outcome.VIOLATION, WRONG):
        matrix = Matrix(synthetic, ranks=2).fails(0, 1, outcome=outcome, violations=[Violation("reused", "where")])
        assert matrix.finding().title.startswith("output overwritten by a later call")


@pytest.mark.parametrize(
    ("kinds", "title"),
    [
        (("passes differ", "fallback", "cached"), "answer not from its inputs"),
        (("fallback", "inputs"), "changes its inputs"),
        (("guard", "inputs"), "access outside of tensors: writes"),
    ],
)
def test_what_explains_the_other_names_the_finding(synthetic: Synthetic, kinds: tuple[str, ...], title: str) -> None:
    violations = [Violation(kind, "where") for kind in kinds]
    matrix = Matrix(synthetic, ranks=2).fails(0, 1, outcome=Outcome.VIOLATION, violations=violations)
    assert matrix.finding().title == title


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("OutOfResources: out of resource: shared memory, Required: 300000", "resource limit"),
        ("ResourceLimit: _k needs 1,049,600 bytes of shared memory, a block may use 232,448", "resource limit"),
        (
            "GridLimit: _k was launched with 65,536 blocks on axis 1, at most 65,535; its grid is 1 x 65,536",
            "resource limit",
        ),
        ("RuntimeError: Triton Error [CUDA]: invalid argument", ""),
        ("CompilationError: at 3:4: Cannot make_shape_compatible", "compile error on this Triton"),
        ("ValueError: no", ""),
    ],
)
def test_errors_of_triton(synthetic: Synthetic, message: str, cause: str) -> None:
    finding = Matrix(synthetic, ranks=2).fails(0, 1, outcome=Outcome.ERROR, message=message).finding()
    assert finding.cause == cause and message in finding.sightings[0].lines


def test_a_grid_that_is_too_large_is_told_with_its_launch_and_what_to_do(synthetic: Synthetic) -> None:
    message = "GridLimit: _k was launched with 65,536 blocks on axis 1, at most 65,535; its grid is 1 x 65,536"
    matrix = Matrix(synthetic, ranks=1).fails(0, outcome=Outcome.ERROR, message=message, source="mine.py:12")
    finding = matrix.finding()
    assert "raised at mine.py:12" in finding.sightings[0].lines and "axis 0" in finding.remedy


def test_an_entry_that_cannot_be_read_names_its_file(synthetic: Synthetic) -> None:
    message = "JSONDecodeError: Expecting value (damaged cache entry: /c/ABC/k.json)"
    finding = Matrix(synthetic).fails(3, outcome=Outcome.ERROR, message=message).finding()
    assert (finding.title, finding.ranks) == ("stale or mixed kernel cache: damaged cache entry", [3])


def test_an_error_under_one_cache_only(synthetic: Synthetic) -> None:
    matrix = Matrix(synthetic).fails(1, outcome=Outcome.ERROR, message="KeyError: 'shared'")
    matrix.tried(1, repeat=(Outcome.ERROR, {"message": "KeyError: 'shared'"}), fresh_cache=RIGHT)
    finding = matrix.finding()
    assert finding.cause == "stale or mixed kernel cache"
    assert "repeated in a fresh process: error, KeyError: 'shared'" in told(finding)


def test_a_cold_cache_that_is_right_when_filled_by_one(synthetic: Synthetic) -> None:
    finding = Matrix(synthetic, cache="cold").fails(1, outcome=Outcome.ERROR).repeats(1, wrong=0).finding()
    assert finding.cause == "compile race"
    assert Matrix(synthetic, cache="cold").fails(1).repeats(1).finding().cause == "undetermined"
    assert Matrix(synthetic).fails(1).repeats(1, wrong=0).finding().cause == "undetermined", "that cache was not cold"


def launch(stream: int, **changes: Any) -> Launch:
    known: dict[str, Any] = {"source": "matmul_ogs.py:467", **changes}
    return Launch("_matmul_ogs", 1, 1, ["cuda:1"], stream, "h", "sm_90", 0, 8, [1], **known)


def test_a_launch_on_another_stream_under_stress_of_order(synthetic: Synthetic) -> None:
    astray = {"launches": [launch(7)], "stream": 0}
    finding = Matrix(synthetic, late=True).fails(1, **astray).finding()
    assert finding.cause == "missing stream order"
    line = "_matmul_ogs launched on stream 7, its inputs come on stream 0 (matmul_ogs.py:467)"
    assert line in finding.sightings[0].lines
    assert Matrix(synthetic).fails(1, **astray).finding().cause == "undetermined", "no stress, no proof"
    home = {"launches": [launch(0)], "stream": 0}
    assert Matrix(synthetic, late=True).fails(1, **home).finding().cause == "undetermined"


def test_a_kernel_that_did_not_wait_finds_what_memory_held_before(synthetic: Synthetic) -> None:
    """Its outputs change with the fill, and the stream says why; on the right stream the fill says enough."""
    read = {"violations": [Violation("passes differ", "it is read outside of x")]}
    early = {**read, "launches": [launch(7)], "stream": 0}
    assert Matrix(synthetic, late=True).fails(1, **early).finding().cause == "missing stream order"
    waited = Matrix(synthetic).fails(1, **early).repeats(1).tried(1, synchronised=RIGHT)
    assert waited.finding().cause == "missing stream order"
    assert Matrix(synthetic).fails(1, **early).repeats(1).tried(1, synchronised=WRONG).finding().cause == OUTSIDE
    assert Matrix(synthetic, late=True).fails(1, **read, launches=[launch(0)], stream=0).finding().cause == OUTSIDE


def test_answers_serve_cases_of_the_same_row_that_fail_alike(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=2)
    first, second = plan.steps
    row = replace(second, case=replace(second.case, row=first.case.row))
    plan = replace(plan, steps=(first, row))
    bad = {(n, 1): synthetic.record(plan, n, 1, WRONG, digests={"y": "bad"}, wrong=1) for n in (0, 1)}
    run = synthetic.run(plan, bad)
    run.experiments[(0, 1)] = {
        "repeat": synthetic.record(plan, 0, 1, WRONG, wrong=5, repeats=5),
        "other rank": synthetic.record(plan, 0, 1, RIGHT),
    }
    (finding,) = conclude(run).findings
    assert finding.cause == "environment of a rank" and len(finding.sightings) == 2
    assert finding.evidence[0].startswith("5 of 5 repeats"), "the case that was tried speaks for itself"
    run.records[(1, 1)] = replace(run.records[(1, 1)], outcome=Outcome.CRASH, mismatches=[])
    assert {finding.cause for finding in conclude(run).findings} == {"environment of a rank", "crash"}


def test_causes_of_one_kind_on_several_ranks_are_one_finding_each(synthetic: Synthetic) -> None:
    matrix = Matrix(synthetic).fails(1).fails(3, bits="others")
    matrix.repeats(1).tried(1, other_rank=RIGHT, other_device=WRONG)
    matrix.repeats(3).tried(3, other_rank=WRONG, other_device=RIGHT)
    assert {(finding.cause, tuple(finding.ranks)) for finding in matrix.findings()} == {
        ("environment of a rank", (1,)),
        ("suspect GPU", (3,)),
    }


class TestAutotuned:
    TUNING = Violation("tuning differs", "the first call gave other bits")

    def matrix(self, synthetic: Synthetic, again: Any = None, **changes: Any) -> Matrix:
        given = {"violations": [self.TUNING], "repeats": 3, "bad_calls": [0], **changes}
        matrix = Matrix(synthetic, ranks=1).fails(0, **given)
        return matrix if again is None else matrix.tried(0, repeat=(WRONG, {"repeats": 6, "wrong": 1, **again}))

    def test_a_first_call_that_is_wrong_in_each_process(self, synthetic: Synthetic) -> None:
        finding = self.matrix(synthetic, {"violations": [self.TUNING], "bad_calls": [0]}).finding()
        assert finding.title == "autotuned on live tensors: wrong in the first call alone"
        assert "restore_value" in finding.remedy
        assert "wrong in the first of 6 calls of a fresh process" in told(finding)

    def test_what_later_calls_lack_is_named(self, synthetic: Synthetic) -> None:
        later = {"violations": [self.TUNING], "bad_calls": [1, 2, 3, 4, 5]}
        lacking = synthetic.mismatch(wrong=8, poison=8)
        finding = self.matrix(synthetic, later, bad_calls=[1, 2], mismatches=[lacking]).finding()
        assert finding.title == "autotuned on live tensors: output not written"

    def test_one_process_proves_nothing(self, synthetic: Synthetic) -> None:
        assert self.matrix(synthetic).finding().cause == "undetermined"

    def test_not_where_the_next_process_does_otherwise(self, synthetic: Synthetic) -> None:
        for again in ({"violations": []}, {"violations": [Violation("repeats differ", "")], "distinct": 2}):
            assert self.matrix(synthetic, again).finding().cause != "autotuned on live tensors"

    def test_not_where_calls_after_the_first_differ_too(self, synthetic: Synthetic) -> None:
        both = [self.TUNING, Violation("repeats differ", "")]
        assert self.matrix(synthetic, {"violations": both}, violations=both).finding().cause == (
            "race or uninitialised read"
        )
