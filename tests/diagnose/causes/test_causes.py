"""Rules on synthetic matrices of ranks and experiments: what proves a cause, what does not, what stays open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.causes import CAUSES
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import Conditions
from gpucheck.model.finding import Finding
from gpucheck.model.record import Launch, Outcome, Record, Verdict, Violation
from gpucheck.records.run_folder import Run
from tests.conftest import Synthetic

WRONG, RIGHT = Outcome.MISMATCH, Outcome.PASS
OUTSIDE = "access outside of tensors"
TOO_LARGE = "GridLimit: _k was launched with 65,536 blocks on axis 1, at most 65,535; its grid is 1 x 65,536"
ENOUGH = 8  # processes right under a changed condition, where five of five were wrong without
Fails = Mapping[int, Mapping[str, Any]]
"""Rank -> changes of its failing record."""


class Matrix:
    """One case on some ranks; ranks that nothing is said of pass."""

    def __init__(self, synthetic: Synthetic, ranks: int = 4, **conditions: Any) -> None:
        self.synthetic = synthetic
        self.run: Run = synthetic.run(synthetic.plan(cases=1, ranks=ranks, under=[Conditions(**conditions)]))

    def fails(self, *ranks: int, outcome: Outcome = WRONG, **changes: Any) -> Matrix:
        bits = {"digests": {"y": changes.pop("bits", "bad")}, "wrong": 1} if outcome is WRONG else {}
        for rank in ranks:
            self.run.records[(0, rank)] = self.record(rank, outcome, **{**bits, **changes})
        return self

    def tried(self, rank: int, **answers: Any) -> Matrix:
        """Adds experiments by name; a name with blanks has underscores here."""
        known = self.run.experiments.setdefault((0, rank), {})
        for word, answer in answers.items():
            outcome, changes = answer if isinstance(answer, tuple) else (answer, {})
            name, bits = word.replace("_", " "), {"digests": {"y": "bad"}} if outcome is WRONG else {}
            processes = changes.pop("processes", 1 if outcome is not RIGHT or word == "repeat" else ENOUGH)
            made = [self.record(rank, outcome, experiment=name, **{**bits, **changes}) for _ in range(processes)]
            known.setdefault(name, []).extend(made)
        return self

    def repeats(self, rank: int, wrong: int = 5, of: int = 5, **changes: Any) -> Matrix:
        """Fresh processes, of which some are wrong."""
        self.tried(rank, repeat=(WRONG, {"processes": wrong, **changes}))
        return self.tried(rank, repeat=(RIGHT, {"processes": of - wrong}))

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
    def test_all_ranks_with_the_same_bits_in_every_process(self, synthetic: Synthetic) -> None:
        matrix = Matrix(synthetic).fails(0, 1, 2, 3)
        for rank in range(4):
            matrix.repeats(rank, wrong=22, of=22)
        finding = matrix.finding()
        assert (finding.cause, finding.ranks) == ("kernel bug", [0, 1, 2, 3])
        counted = "in all 92 processes of ranks 0-3: at least 95.1% of processes fail (99% confidence)"
        assert counted in told(finding)

    @pytest.mark.parametrize("of", [0, 1, 5, 43])
    def test_not_before_a_fault_of_most_processes_is_ruled_out(self, synthetic: Synthetic, of: int) -> None:
        matrix = Matrix(synthetic, ranks=2).fails(0, 1)
        for rank in (0, 1):
            matrix.repeats(rank, wrong=of, of=of)
        finding = matrix.finding()
        assert finding.cause == "undetermined"
        wanted = {
            5: "all 12 processes failed alike, which does not rule out a fault that spares 32% of processes; 90 of 90",
            43: "all 88 processes failed alike, which does not rule out a fault that spares 6% of processes; 90 of 90",
        }
        assert wanted.get(of, "gpucheck run with --experiments 60") in finding.fix
        assert ("the same wrong bits in all 88 processes of ranks 0, 1: at least 94.9%" in told(finding)) == (of == 43)

    def test_not_where_one_rank_is_right(self, synthetic: Synthetic) -> None:
        finding = Matrix(synthetic).fails(1, 2, 3).finding()
        assert (finding.cause, finding.ranks) == ("undetermined", [1, 2, 3])

    def test_not_where_one_rank_has_other_bits(self, synthetic: Synthetic) -> None:
        matrix = Matrix(synthetic).fails(0, 1, 2).fails(3, bits="others")
        for rank in (0, 1, 2):
            matrix.repeats(rank)
        findings = matrix.findings()
        assert {finding.cause for finding in findings} == {"undetermined"}
        assert any("fix what rank 3 shows" in finding.fix for finding in findings)

    def test_ranks_that_judged_nothing_do_not_count(self, synthetic: Synthetic) -> None:
        matrix = Matrix(synthetic).fails(0, 1, 2).fails(3, outcome=Outcome.LOST)
        for rank in range(3):
            matrix.repeats(rank, wrong=29, of=29)
        assert [finding.cause for finding in matrix.findings()] == ["kernel bug", ""]

    def test_a_store_outside_on_one_rank_leaves_it_to_the_others(self, synthetic: Synthetic) -> None:
        """With a right output that rank proves nothing; with the same wrong one it has both faults."""
        guard = [Violation("guard", "2 bytes written")]
        for outcome, ranks in ((Outcome.VIOLATION, [1, 2, 3]), (WRONG, [0, 1, 2, 3])):
            matrix = Matrix(synthetic).fails(1, 2, 3).fails(0, outcome=outcome, violations=guard)
            for rank in ranks:
                matrix.repeats(rank, wrong=29, of=29)
            found = {(finding.title, tuple(finding.ranks)) for finding in matrix.findings()}
            writes = ("access outside of tensors: writes", (0,))
            assert found == {writes, ("kernel bug: wrong output", tuple(ranks))}

    def test_one_gpu_alone_cannot_tell_and_names_what_would(self, synthetic: Synthetic) -> None:
        finding = Matrix(synthetic, ranks=1).fails(0).repeats(0).finding()
        assert finding.cause == "undetermined" and "--nproc 2" in finding.fix

    def test_one_rank_on_the_cpu_has_no_gpu_to_blame(self, synthetic: Synthetic) -> None:
        matrix = Matrix(synthetic, ranks=1).fails(0).repeats(0, wrong=89, of=89)
        matrix.run.plan = replace(matrix.run.plan, device="cpu")
        assert matrix.finding().cause == "kernel bug"


class TestProcessGroup:
    def test_right_without(self, synthetic: Synthetic) -> None:
        matrix = Matrix(synthetic, ranks=2, process_group="initialised").fails(0, 1, bits="x")
        for rank in (0, 1):
            matrix.repeats(rank).tried(rank, no_group=RIGHT, other_rank=WRONG)
        finding = matrix.finding()
        assert (finding.cause, finding.ranks) == ("dependence on the process group", [0, 1])

    def test_a_twin_in_the_plan_says_nothing_of_a_failure_that_may_not_come_again(self, synthetic: Synthetic) -> None:
        plan = synthetic.plan(cases=1, ranks=2, under=[Conditions(), Conditions(process_group="initialised")])
        run = synthetic.run(plan, {(1, 1): {"outcome": WRONG, "digests": {"y": "bad"}}})
        (finding,) = conclude(run).findings
        assert finding.cause == "undetermined"
        run.experiments[(1, 1)] = {"repeat": [synthetic.record(plan, 1, 1) for _ in range(5)]}
        (finding,) = conclude(run).findings
        assert finding.cause == "undetermined" and "did not come again" in finding.fix

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
    matrix.run.experiments[(0, 2)].pop("repeat")
    assert matrix.finding().cause == "undetermined", "one failure that nobody repeated proves nothing"
    assert "--experiments" in matrix.finding().fix


def test_a_failure_that_did_not_come_again_is_never_the_gpus(synthetic: Synthetic) -> None:
    matrix = Matrix(synthetic).fails(2).repeats(2, wrong=0)
    finding = matrix.tried(2, other_rank=RIGHT, other_device=RIGHT, alone=RIGHT).finding()
    assert finding.cause == "undetermined" and "repeat = 200" in finding.fix


@pytest.mark.parametrize(
    ("wrong", "runs", "cause"),
    [
        (5, 10, "undetermined"),
        (5, 11, "state shared by threads"),
        (4, 22, "undetermined"),
        (4, 23, "state shared by threads"),
    ],
)
def test_a_condition_is_the_cause_where_processes_do_not_stay_right_by_luck(
    synthetic: Synthetic, wrong: int, runs: int, cause: str
) -> None:
    """Five of five wrong and eleven right are one of 4,368 ways to deal out five failures; ten make one of 3,003."""
    flaky = {"calls": [*"abab", "b"], "bad_calls": [1, 3, 4], "violations": [Violation("repeats differ", "d")]}
    matrix = Matrix(synthetic, concurrency=4).fails(1, **flaky)
    for number in range(wrong):
        matrix.tried(1, repeat=(WRONG, {**flaky, "calls": [*"abab"[number % 4 :], "c"]}))
    matrix.tried(1, repeat=(RIGHT, {"processes": 5 - wrong})).tried(1, one_thread=(RIGHT, {"processes": runs}))
    assert matrix.finding().cause == cause


def test_every_second_process_is_no_interference_and_no_environment(synthetic: Synthetic) -> None:
    matrix = Matrix(synthetic).fails(2)
    for outcome in (RIGHT, WRONG, RIGHT, WRONG, RIGHT):
        matrix.tried(2, repeat=(outcome, {"asked": 8, "processes": 1}))
    finding = matrix.tried(2, alone=(RIGHT, {"processes": 1}), other_rank=(RIGHT, {"processes": 1})).finding()
    assert finding.cause == "decided anew in each process"


def test_more_calls_are_not_held_against_fewer(synthetic: Synthetic) -> None:
    """A crash in a process of five calls, and none in processes of one call: that is no interference."""
    matrix = Matrix(synthetic).fails(1, outcome=Outcome.CRASH)
    matrix.tried(1, repeat=(Outcome.CRASH, {"processes": 5, "asked": 5}), alone=(RIGHT, {"asked": 1}))
    assert matrix.finding().cause == "crash"
    matrix.run.experiments[(0, 1)].pop("alone")
    assert matrix.tried(1, alone=(RIGHT, {"asked": 5})).finding().cause == "interference between ranks"


FLAKY = [Violation("repeats differ", "equal inputs in equal memory gave other bits")]


def flaking(matrix: Matrix, rank: int, *names: str) -> Matrix:
    """Calls of each process differ in an order of its own."""
    for name in ("repeat", *names):
        for calls in ("abaa", "aaba", "baaa", "abba", "aaab"):
            found = {"calls": list(calls), "bad_calls": [n for n, c in enumerate(calls) if c == "b"]}
            partner = {"partner": (rank + 1) % matrix.run.plan.nproc} if name.startswith("other") else {}
            matrix.tried(rank, **{name: (WRONG, {**found, **partner, "violations": FLAKY, "asked": 4})})
    return matrix


def test_calls_that_differ_in_no_order_are_a_race_once_nothing_else_can_be(synthetic: Synthetic) -> None:
    matrix = Matrix(synthetic, ranks=2).fails(0, 1, violations=FLAKY)
    assert matrix.finding().cause == "undetermined", "nobody repeated it"
    for rank in (0, 1):
        flaking(matrix, rank)
    assert "other rank, other device, synchronised not tried" in matrix.finding().fix
    for rank in (0, 1):
        flaking(matrix, rank, "other_rank", "other_device", "synchronised")
    assert matrix.finding().cause == "race or uninitialised read"


def test_calls_that_differ_on_one_gpu_alone_are_no_race(synthetic: Synthetic) -> None:
    matrix = flaking(Matrix(synthetic, ranks=2).fails(1, violations=FLAKY), 1, "other_rank", "synchronised")
    steady = (RIGHT, {"partner": 0, "processes": 11, "asked": 4})
    assert matrix.tried(1, other_device=steady).finding().cause == "suspect GPU"


@pytest.mark.parametrize("calls", ["abababab", "abbbbbbb", "aaaaabbb"])
def test_the_same_calls_wrong_in_each_process_are_state(synthetic: Synthetic, calls: str) -> None:
    matrix = Matrix(synthetic, ranks=2).fails(0, 1, violations=FLAKY)
    found = {"calls": list(calls), "bad_calls": [n for n, c in enumerate(calls) if c == "b"]}
    for rank in (0, 1):
        matrix.tried(rank, repeat=(WRONG, {**found, "processes": 3}))
    assert matrix.finding().cause == "undetermined", "three processes may agree by luck"
    for rank in (0, 1):
        matrix.tried(rank, repeat=(WRONG, found))
    finding = matrix.finding()
    assert finding.title == "state kept between calls: by the number of the call"


def test_a_further_call_that_differs_in_each_process_is_state(synthetic: Synthetic) -> None:
    """The calls of the case itself agree, which those of a race would not."""
    changes = {"outcome": Outcome.VIOLATION, "violations": FLAKY, "digests": {"y": "d"}}
    matrix = Matrix(synthetic, ranks=2).fails(0, 1, **changes)
    assert matrix.finding().cause == "undetermined"
    for rank in (0, 1):
        matrix.tried(rank, repeat=(Outcome.VIOLATION, {"violations": FLAKY, "processes": 5}))
    assert matrix.finding().cause == "state kept between calls"


@pytest.mark.parametrize(("processes", "cause"), [(7, "undetermined"), (8, "state kept between calls")])
def test_a_case_that_spoils_another_is_named(synthetic: Synthetic, processes: int, cause: str) -> None:
    plan = synthetic.plan(cases=3, ranks=2)
    run = synthetic.run(plan, {(2, 1): synthetic.record(plan, 2, 1, WRONG, digests={"y": "b"}, before=2)})

    def after(*steps: int, outcome: Outcome = WRONG) -> Record:
        made: Record = synthetic.record(plan, 2, 1, outcome, after=list(steps), experiment="history")
        return made

    pair = [after(0) for _ in range(processes)]
    run.experiments[(2, 1)] = {
        "repeat": [synthetic.record(plan, 2, 1, experiment="repeat") for _ in range(5)],
        "history": [after(0, 1), after(1, outcome=RIGHT), *pair],
    }
    (finding,) = conclude(run).findings
    assert finding.cause == cause
    if cause != "undetermined":
        spoiler = plan.steps[0].label
        assert finding.title == f"state kept between calls: spoiled by {spoiler}"
        words = f"wrong in 8 of 8 processes after {spoiler}; right in 5 of 5 alone"
        assert words in finding.cases[0].lines


@pytest.mark.parametrize("outcome", [Outcome.VIOLATION, WRONG])
@pytest.mark.parametrize(
    ("kinds", "title"),
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
        ("reused", "output overwritten by a later call"),
        ("output", "output not as asked"),
        ("layout", "output not as asked"),
        ("configuration", "not the configuration asked for"),
        # of several the one that explains the others names the finding
        ("launches, fallback", "fallback: kernel under test launched less often than needed"),
        ("passes differ, fallback, cached", "answer not from its inputs"),
        ("fallback, inputs", "changes its inputs"),
        ("guard, inputs", "access outside of tensors: writes"),
    ],
)
def test_violations_that_speak_for_themselves(synthetic: Synthetic, outcome: Outcome, kinds: str, title: str) -> None:
    violations = [Violation(kind, "where") for kind in kinds.split(", ")]
    finding = Matrix(synthetic, ranks=2).fails(0, 1, outcome=outcome, violations=violations).finding()
    if outcome is WRONG and kinds in ("output", "layout", "configuration"):
        assert finding.cause == "undetermined", "another form than asked for says less than wrong numbers"
    else:
        assert finding.title.startswith(title) and f"{violations[0].kind}: where" in finding.cases[0].lines


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("OutOfResources: out of resource: shared memory, Required: 300000", "resource limit"),
        ("ResourceLimit: _k needs 1,049,600 bytes of shared memory, a block may use 232,448", "resource limit"),
        (TOO_LARGE, "resource limit"),
        ("RuntimeError: Triton Error [CUDA]: invalid argument", ""),
        ("CompilationError: at 3:4: Cannot make_shape_compatible", "compile error on this Triton"),
        ("ValueError: no", ""),
    ],
)
def test_errors_of_triton(synthetic: Synthetic, message: str, cause: str) -> None:
    finding = Matrix(synthetic, ranks=2).fails(0, 1, outcome=Outcome.ERROR, message=message).finding()
    assert finding.cause == cause and message in finding.cases[0].lines


def test_a_grid_that_is_too_large_is_told_with_its_launch_and_what_to_do(synthetic: Synthetic) -> None:
    finding = (
        Matrix(synthetic, ranks=1).fails(0, outcome=Outcome.ERROR, message=TOO_LARGE, source="mine.py:12").finding()
    )
    assert "raised at mine.py:12" in finding.cases[0].lines and "axis 0" in finding.fix


def test_an_entry_that_cannot_be_read_names_its_file(synthetic: Synthetic) -> None:
    message = "JSONDecodeError: Expecting value (damaged cache entry: /c/ABC/k.json)"
    finding = Matrix(synthetic).fails(3, outcome=Outcome.ERROR, message=message).finding()
    assert (finding.title, finding.ranks) == ("stale or mixed kernel cache: damaged cache entry", [3])


def test_an_error_under_one_cache_only(synthetic: Synthetic) -> None:
    matrix = Matrix(synthetic).fails(1, outcome=Outcome.ERROR, message="KeyError: 'shared'")
    matrix.tried(1, repeat=(Outcome.ERROR, {"message": "KeyError: 'shared'", "processes": 5}), fresh_cache=RIGHT)
    finding = matrix.finding()
    assert finding.cause == "stale or mixed kernel cache"


def test_a_cold_cache_that_is_right_when_filled_by_one(synthetic: Synthetic) -> None:
    finding = Matrix(synthetic, cache="cold").fails(1, outcome=Outcome.ERROR).repeats(1, wrong=0).finding()
    assert finding.cause == "compile race"
    assert Matrix(synthetic, cache="cold").fails(1).repeats(1).finding().cause == "undetermined"
    assert Matrix(synthetic).fails(1).repeats(1, wrong=0).finding().cause == "undetermined", "that cache was not cold"


def launch(stream: int, **changes: Any) -> Launch:
    known: dict[str, Any] = {"source": "matmul_ogs.py:467", **changes}
    return Launch("_matmul_ogs", 1, 1, ["cuda:1"], stream, "h", "sm_90", 0, 8, [1], **known)


def test_a_launch_on_another_stream_under_stress_of_order(synthetic: Synthetic) -> None:
    on_other_stream = {"launches": [launch(7)], "stream": 0}
    finding = Matrix(synthetic, late=True).fails(1, **on_other_stream).finding()
    assert finding.cause == "missing stream order"
    line = "_matmul_ogs launched on stream 7, its inputs come on stream 0 (matmul_ogs.py:467)"
    assert line in finding.cases[0].lines
    assert Matrix(synthetic).fails(1, **on_other_stream).finding().cause == "undetermined", "no stress, no proof"
    threads = Matrix(synthetic, late=True, stream="side", concurrency=4)
    assert threads.fails(1, **on_other_stream).finding().cause == "undetermined", "each has a stream of its own"
    home = {"launches": [launch(0)], "stream": 0}
    assert Matrix(synthetic, late=True).fails(1, **home).finding().cause == "undetermined"


def test_parts_of_outputs_that_nobody_wrote_change_with_memory_and_are_no_read(synthetic: Synthetic) -> None:
    """A histogram that counts too few leaves later outputs unwritten, and reads nothing outside."""

    def cause(counts: int, gates: int) -> str:
        few = synthetic.mismatch(output="histogram", wrong=2, follows=counts)
        holes = synthetic.mismatch(output="gates", wrong=11, poison=4, follows=gates)
        differ = Violation("passes differ", "it is read within y")
        return Matrix(synthetic).fails(1, violations=[differ], mismatches=[few, holes]).finding().cause

    assert cause(0, 4) == "undetermined"
    assert cause(0, 5) == cause(2, 4) == OUTSIDE


def test_a_kernel_that_did_not_wait_finds_what_memory_held_before(synthetic: Synthetic) -> None:
    """Its outputs change with the fill, and the stream says why; on the right stream the fill says enough."""
    read = {"violations": [Violation("passes differ", "it is read outside of x")]}
    early = {**read, "launches": [launch(7)], "stream": 0}
    assert Matrix(synthetic, late=True).fails(1, **early).finding().cause == "missing stream order"
    waited = Matrix(synthetic).fails(1, **early).repeats(1, **read).tried(1, synchronised=RIGHT)
    assert waited.finding().cause == "missing stream order"
    waited.run.experiments[(0, 1)].pop("synchronised")
    assert waited.tried(1, synchronised=(WRONG, read)).finding().cause == OUTSIDE
    assert Matrix(synthetic).fails(1, **early).repeats(1).finding().cause == "undetermined", "it followed it by luck"
    assert Matrix(synthetic, late=True).fails(1, **read, launches=[launch(0)], stream=0).finding().cause == OUTSIDE


def test_answers_serve_cases_of_the_same_row_that_fail_alike(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=2, one_row=True)
    bad = {"outcome": WRONG, "digests": {"y": "bad"}, "wrong": 1}
    run = synthetic.run(plan, {(0, 1): bad, (1, 1): bad})
    run.experiments[(0, 1)] = {
        "repeat": [synthetic.record(plan, 0, 1, WRONG, digests={"y": "bad"}) for _ in range(5)],
        "other rank": [synthetic.record(plan, 0, 1, RIGHT, partner=0) for _ in range(8)],
    }
    (finding,) = conclude(run).findings
    assert finding.cause == "environment of a rank" and len(finding.cases) == 2
    assert finding.evidence[0].startswith("wrong in 5 of 5"), "the case that was tried speaks for itself"
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
        assert "restore_value" in finding.fix

    def test_what_later_calls_lack_is_named(self, synthetic: Synthetic) -> None:
        later = {"violations": [self.TUNING], "bad_calls": [1, 2, 3, 4, 5]}
        lacking = synthetic.mismatch(wrong=8, poison=8)
        finding = self.matrix(synthetic, later, bad_calls=[1, 2], mismatches=[lacking]).finding()
        assert finding.title == "autotuned on live tensors: output not written"

    def test_one_process_proves_nothing(self, synthetic: Synthetic) -> None:
        assert self.matrix(synthetic).finding().cause == "undetermined"

    def test_not_where_the_next_process_or_later_calls_do_otherwise(self, synthetic: Synthetic) -> None:
        differ = Violation("repeats differ", "")
        for again in ({"violations": []}, {"violations": [differ], "distinct": 2}):
            assert self.matrix(synthetic, again).finding().cause != "autotuned on live tensors"
        both = [self.TUNING, differ]
        finding = self.matrix(synthetic, {"violations": both}, violations=both).finding()
        assert finding.cause != "autotuned on live tensors"
