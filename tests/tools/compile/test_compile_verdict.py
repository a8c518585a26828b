from __future__ import annotations

import pytest

from gpucheck.model.record import Verdict
from gpucheck.tools.compile.compile_verdict import newest_first, summarise
from gpucheck.tools.compile.outcome import Built, CaseBuilt, Combination, Kernel, Kind, Problem, Result
from tests.tools.compile.conftest import PROBLEM, make_kernel, make_result

LOST = CaseBuilt("b/case", Built.NOT_REACHED, "IndexError: out of range", "lib/host.py:3")
UNFIT = CaseBuilt("c/case", Built.INAPPLICABLE, "no such layout here")


def failing(**changes: object) -> Kernel:
    return make_kernel("bad", Built.FAILED, **changes)


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ([make_result()], Verdict.PASS),
        ([make_result(c=UNFIT)], Verdict.PASS),
        ([make_result(), make_result(target="sm_80", kernels=[failing()])], Verdict.FAIL),
        ([make_result(b=LOST)], Verdict.INCONCLUSIVE),
        ([make_result(b=LOST, kernels=[failing()])], Verdict.FAIL),
        ([make_result(kernels=[], c=UNFIT)], Verdict.NOTHING_RAN),
        ([Result(Combination("E", "3.6.0", "sm_90"), inapplicable="needs Triton 3.8")], Verdict.NOTHING_RAN),
        ([], Verdict.NOTHING_RAN),
    ],
)
def test_the_verdict_follows_from_the_worst(results: list[Result], verdict: Verdict) -> None:
    assert summarise(results).verdict is verdict


def test_one_failure_is_one_finding_wherever_it_is_seen() -> None:
    other = Problem(Kind.ERROR, "ValueError: sizes 16 and 64", "lib/k.py:7", "x + y", "a hint")
    elsewhere = Problem(Kind.ERROR, "ValueError: sizes 16 and 64", "lib/k.py:9", "x - y", "a hint")
    summary = summarise(
        [
            make_result(target="sm_80", kernels=[failing()]),
            make_result(target="sm_90", kernels=[failing(problem=other, warps=8)]),
            make_result(target="sm_100", kernels=[failing(problem=elsewhere)]),
        ]
    )
    first, second = summary.findings
    assert [entry.target for entry in first.where] == ["sm_80", "sm_90"]
    assert first.errors == [PROBLEM.error, other.error] and first.cases == ["a/case"]
    assert first.shapes == ["4 warps, 3 stages", "8 warps, 3 stages"]
    assert second.problem.place == "lib/k.py:9"


def test_too_much_shared_memory_is_one_finding_over_all_gpus() -> None:
    def problem(needed: str, target: str) -> Problem:
        return Problem(Kind.RESOURCE, f"needs {needed} bytes of shared memory, a block may use 9 on {target}", "k.py:1")

    results = [
        make_result(target="sm_90", kernels=[failing(problem=problem("1,049,600", "sm_90"))]),
        make_result(target="gfx942", kernels=[failing(problem=problem("788,480", "gfx942"))]),
    ]
    (finding,) = summarise(results).findings
    assert len(finding.errors) == 2 and len(finding.where) == 2


def test_cases_that_were_not_compiled_are_gathered_by_reason() -> None:
    results = [make_result(b=LOST, c=UNFIT), make_result(target="sm_80", b=LOST)]
    results.append(Result(Combination("E", "3.6.0", "sm_90"), inapplicable="needs Triton 3.8"))
    summary = summarise(results)
    (lost,) = summary.not_reached
    assert lost.reason == "IndexError: out of range (lib/host.py:3)"
    assert lost.cases == ["b/case"] and [entry.target for entry in lost.where] == ["sm_90", "sm_80"]
    assert {remark.reason for remark in summary.inapplicable} == {"no such layout here", "needs Triton 3.8"}


def test_the_advice_is_the_newest_triton_that_passes_for_every_target() -> None:
    def at(library: str, triton: str, target: str, *, fails: bool = False) -> Result:
        return make_result(library, triton, target, [failing()] if fails else None)

    results = [at("B", "3.10.0", "sm_80", fails=True)]
    results += [at("B", triton, target) for triton, target in [("3.10.0", "sm_90"), ("3.9.0", "sm_80")]]
    results += [at("B", "3.9.0", "sm_90"), at("B", "3.6.0", "sm_80"), at("B", "3.6.0", "sm_90")]
    assert summarise(results).newest == "3.9.0"
    results += [at("own", "3.6.0", "sm_80"), at("own", "3.6.0", "sm_90"), at("own", "3.9.0", "sm_80", fails=True)]
    summary = summarise(results)
    assert summary.newest == "3.6.0" and summary.advice == {"B": "3.9.0", "own": "3.6.0"}


def test_a_target_without_such_kernels_does_not_count_against_a_triton() -> None:
    results = [make_result(triton="3.9.0"), make_result(triton="3.9.0", target="sm_80", kernels=[], c=UNFIT)]
    assert summarise(results).newest == "3.9.0"
    results += [make_result(triton="3.6.0", target=target) for target in ("sm_90", "sm_80")]
    assert summarise(results).newest == "3.6.0", "it compiles for a target that the newer one does not"


@pytest.mark.parametrize(
    "result",
    [
        make_result(b=LOST),
        make_result(kernels=[], c=UNFIT),
        Result(Combination("B", "3.6.0", "sm_90"), inapplicable="needs another"),
    ],
)
def test_a_triton_that_compiled_nothing_or_not_all_is_not_advised(result: Result) -> None:
    assert summarise([result]).newest == "" and summarise([result]).advice == {"B": ""}


def test_versions_are_ordered_by_number() -> None:
    assert newest_first({"3.9.0", "3.10.0", "3.1.0", "3.9.1"}) == ["3.10.0", "3.9.1", "3.9.0", "3.1.0"]
