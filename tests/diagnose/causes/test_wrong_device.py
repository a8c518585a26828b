"""The rule on synthetic records: what is the device's doing, what is not, and what cannot be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import Conditions
from gpucheck.model.finding import Conclusion, Finding
from gpucheck.model.record import Launch, Outcome, Verdict, Violation
from tests.conftest import Synthetic

POINTER = "ValueError: Pointer argument (at -1) cannot be accessed from Triton (cpu tensor?)"
CAUSE = "wrong device context"


def launch(device: int, *arguments: str, **changes: Any) -> Launch:
    made = Launch("_matmul_ogs", 1, device, list(arguments), 0, "h", "sm_90", 0, 8, [1], "matmul_ogs.py:467", device)
    return replace(made, **changes)


def home(rank: int) -> list[Launch]:
    return [launch(rank, f"cuda:{rank}")]


def away(rank: int, **changes: Any) -> list[Launch]:
    return [launch(0, f"cuda:{rank}", **changes)]


class PlacedRun:
    """A run of one case under one placement; ranks that nothing is said of pass at home."""

    def __init__(self, synthetic: Synthetic, placement: str = "peer", ranks: int = 4, **step: Any) -> None:
        plan = synthetic.plan(cases=1, ranks=ranks)
        self.synthetic = synthetic
        self.plan = replace(plan, steps=(replace(plan.steps[0], conditions=Conditions(placement), **step),))

    def conclude(self, changes: Mapping[int, dict[str, Any]]) -> Conclusion:
        known = {"placement": self.plan.steps[0].conditions.placement}
        ranks = range(self.plan.world_size)
        ends = {(0, rank): {**known, "launches": home(rank), **changes.get(rank, {})} for rank in ranks}
        return conclude(self.synthetic.run(self.plan, ends))

    def finding(self, changes: Mapping[int, dict[str, Any]]) -> Finding:
        (finding,) = self.conclude(changes).findings
        return finding


def violated(rank: int, *more: str) -> dict[str, Any]:
    kinds = ("device", *more)
    return {"outcome": Outcome.VIOLATION, "launches": away(rank), "violations": [Violation(k, "d") for k in kinds]}


def corrupted(rank: int) -> dict[str, Any]:
    return {**violated(rank), "outcome": Outcome.MISMATCH, "wrong": 10, "repeats": 10}


def test_corrupted_outputs_are_told_with_their_case(synthetic: Synthetic) -> None:
    finding = PlacedRun(synthetic).finding({1: corrupted(1)})
    assert (finding.title, finding.cause, finding.ranks, finding.fails) == (f"{CAUSE}: corrupted", CAUSE, [1], True)
    (failed_case,) = finding.cases
    assert failed_case.case == "matmul/0/exact (peer)" and failed_case.replay.endswith("matmul/0/exact --rank 1")


@pytest.mark.parametrize("outcome", [Outcome.CRASH, Outcome.ERROR])
def test_an_error_after_a_launch_elsewhere_is_its_doing(synthetic: Synthetic, outcome: Outcome) -> None:
    words = "AcceleratorError: an illegal memory access was encountered; first wrong at step 0, layer 0, qkv"
    lost = {"outcome": outcome, "sticky": outcome is Outcome.CRASH, "launches": away(1), "message": words}
    finding = PlacedRun(synthetic).finding({1: lost})
    assert (finding.title, finding.ranks) == (f"{CAUSE}: corrupted", [1])
    assert finding.cases[0].lines[0] == words


def test_many_ranks_are_one_finding_of_few_lines(synthetic: Synthetic) -> None:
    changes = {rank: corrupted(rank) for rank in range(1, 8)}
    finding = PlacedRun(synthetic, ranks=8).finding(changes)
    assert finding.ranks == list(range(1, 8)) and len(finding.cases[0].lines) <= 6


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (4, {1: corrupted(1)}),
        (8, {rank: corrupted(rank) for rank in range(1, 8)}),
        (2, {1: {**corrupted(1), "launches": [launch(0, "cuda:1", kernel=f"k{n}") for n in range(5)]}}),
        (2, {1: {**violated(1), "launches": away(1, context=1)}}),
        (2, {1: {"outcome": Outcome.ERROR, "message": POINTER, "launches": away(1, refused=POINTER)}}),
    ],
    ids=["one rank", "many ranks", "many kernels", "right by luck", "refused"],
)
def test_what_is_told(
    synthetic: Synthetic, snapshot: Callable[[str], None], ranks: int, changes: dict[int, dict[str, Any]]
) -> None:
    finding = PlacedRun(synthetic, ranks=ranks).finding(changes)
    snapshot("\n".join([finding.title, *finding.cases[0].lines, finding.fix]))


def test_right_outputs_are_latent_and_still_fail(synthetic: Synthetic) -> None:
    placed = PlacedRun(synthetic, "unpinned")
    conclusion = placed.conclude({1: {**violated(1), "launches": away(1, context=1)}})
    (finding,) = conclusion.findings
    assert conclusion.verdict is Verdict.FAIL
    assert (finding.title, finding.cause) == (f"{CAUSE}: latent, right by luck", CAUSE)
    assert any("context" in line for line in finding.cases[0].lines)
    lines = placed.finding({1: violated(1)}).cases[0].lines
    assert not [line for line in lines if "context" in line], "the driver's context was that of the launch device"
    lines = placed.finding({1: {**violated(1), "launches": away(1, context=None)}}).cases[0].lines
    assert not [line for line in lines if "context" in line], "nothing is known of the context"


@pytest.mark.parametrize(
    ("placement", "launches"),
    [
        ("context0", []),  # nothing observed: the placement is known to leave device 0 current
        ("peer", []),
        ("context0", away(1, refused=POINTER)),
        ("pinned", away(1, refused=POINTER)),  # the record counts, whatever the process was meant to do
    ],
)
def test_refused_launches(synthetic: Synthetic, placement: str, launches: list[Launch]) -> None:
    refused = {"outcome": Outcome.ERROR, "message": POINTER, "launches": launches}
    finding = PlacedRun(synthetic, placement).finding({1: refused})
    assert (finding.title, finding.cause, finding.ranks) == (f"{CAUSE}: launch refused", CAUSE, [1])


@pytest.mark.parametrize(
    ("placement", "rank", "message", "launches"),
    [
        ("pinned", 1, POINTER, []),  # a tensor that really is on the CPU
        ("context0", 1, POINTER, [launch(0, "cpu", "cuda:1", refused=POINTER)]),
        ("context0", 1, POINTER, [launch(1, "cuda:1", "cpu", refused=POINTER)]),
        ("context0", 0, POINTER, []),  # the first rank of a node has no other device
        ("context0", 1, "ValueError: something else", []),
        ("context0", 1, "CompilationError: x", away(1, refused="CompilationError: x")),  # fails on any device
        ("visible", 1, POINTER, []),
    ],
)
def test_errors_that_are_not_the_devices(
    synthetic: Synthetic, placement: str, rank: int, message: str, launches: list[Launch]
) -> None:
    error = {"outcome": Outcome.ERROR, "message": message, "launches": launches}
    finding = PlacedRun(synthetic, placement).finding({rank: error})
    refused = "CompilationError" in message
    named = ("compile error on this Triton",) * 2 if refused else ("the library or kernel raised", "")
    assert (finding.title, finding.cause) == named


def test_wrong_outputs_of_launches_at_home_are_not_the_devices(synthetic: Synthetic) -> None:
    finding = PlacedRun(synthetic).finding({1: {"outcome": Outcome.MISMATCH}})
    assert (finding.title, finding.cause) == ("undetermined: wrong output", "undetermined")


def test_outputs_that_change_are_corrupted_though_right_once(synthetic: Synthetic) -> None:
    finding = PlacedRun(synthetic).finding({2: violated(2, "repeats differ")})
    assert finding.title == f"{CAUSE}: corrupted" and "repeats differ: d" in finding.cases[0].lines


def test_ranks_that_fail_at_home_too_leave_the_cause_undetermined(synthetic: Synthetic) -> None:
    """The kernel may be wrong by itself; the next experiment is named."""
    placed = PlacedRun(synthetic)
    conclusion = placed.conclude({0: {"outcome": Outcome.MISMATCH}, 1: corrupted(1)})
    assert {(f.title, f.cause, tuple(f.ranks)) for f in conclusion.findings} == {
        ("undetermined: launched on another device than its tensors, but ranks that were not fail too",)
        + ("undetermined", (1,)),
        ("undetermined: wrong output", "undetermined", (0,)),
    }
    (unclear,) = [finding for finding in conclusion.findings if finding.ranks == [1]]
    assert unclear.fix.startswith("next: ") and "--placement pinned" in unclear.fix


def test_another_placement_of_the_case_counts_as_at_home(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2, under=[Conditions(), Conditions("peer")])
    ends = {
        (0, 1): {"outcome": Outcome.MISMATCH, "launches": home(1)},
        (1, 1): {"placement": "peer", **corrupted(1)},
    }
    causes = {finding.cause for finding in conclude(synthetic.run(plan, ends)).findings}
    assert causes == {"undetermined"}
    ends[(0, 1)]["outcome"] = Outcome.CRASH
    causes = {finding.cause for finding in conclude(synthetic.run(plan, ends)).findings}
    assert causes == {CAUSE, "crash"}, "a failure of another kind says nothing about this one"


def test_the_three_faces_are_three_findings_of_one_cause(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2, under=[Conditions(name) for name in ("unpinned", "context0", "peer")])
    refused = {"outcome": Outcome.ERROR, "message": POINTER, "placement": "context0"}
    run = synthetic.run(plan, {(0, 1): violated(1), (1, 1): refused, (2, 1): corrupted(1)})
    findings = conclude(run).findings
    assert [finding.title.partition(": ")[2] for finding in findings] == [
        "corrupted",
        "launch refused",
        "latent, right by luck",
    ]
    assert {finding.cause for finding in findings} == {CAUSE} and {tuple(f.ranks) for f in findings} == {(1,)}
    assert [finding.cases[0].case.partition(" ")[2] for finding in findings] == ["(peer)", "(context0)", "(unpinned)"]


def test_passing_records_are_evidence_of_nothing(synthetic: Synthetic) -> None:
    assert PlacedRun(synthetic).conclude({}).verdict is Verdict.PASS
