"""What a run makes of each GPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from gpucheck.diagnose.causes.suspect_gpu import SUSPECT_GPU
from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.node_verdict import GPU, ORDER, SOFTWARE, UNDECIDED, NodeState, NodeVerdict, node_verdict
from gpucheck.host.xid import Xid
from gpucheck.model.finding import Conclusion, Finding
from gpucheck.model.record import Outcome, Verdict
from gpucheck.records.run_folder import Run
from tests.conftest import Synthetic

OUTCOMES = ("pass", "mismatch", "crash", "lost", "inapplicable")


def judged(run: Run) -> NodeVerdict:
    return node_verdict(run, conclude(run))


def states(verdict: NodeVerdict) -> list[str]:
    return [gpu.worst.state.value for gpu in verdict.gpus]


@pytest.mark.parametrize("outcomes", [*product(OUTCOMES, repeat=2)])
def test_a_node_is_never_better_than_its_run_and_a_gpu_that_proved_nothing_never_passes(
    synthetic: Synthetic, outcomes: tuple[str, str]
) -> None:
    plan = synthetic.plan(cases=2, ranks=2)
    ends = {(step, rank): Outcome(outcome) for step in range(2) for rank, outcome in enumerate(outcomes)}
    run = synthetic.run(plan, ends)
    conclusion, verdict = conclude(run), judged(run)
    least = {Verdict.PASS: 0, Verdict.FAIL: 3}.get(conclusion.verdict, 2)
    assert ORDER.index(verdict.worst.state) >= least
    for outcome, state in zip(outcomes, states(verdict), strict=True):
        if outcome != "pass":
            assert state == ("CRITICAL" if outcome in ("mismatch", "crash") else "UNKNOWN")
    if set(outcomes) == {"pass"}:
        assert states(verdict) == ["PASS", "PASS"] and verdict.worst.state is NodeState.PASS


def test_a_fault_of_one_rank_leaves_the_other_gpu_alone(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=2, ranks=2), {(1, 1): Outcome.MISMATCH})
    verdict = judged(run)
    assert states(verdict) == ["PASS", "CRITICAL"] and verdict.gpus[0].worst.reason == "every case was right"
    assert verdict.worst.reason.startswith("rank 1: ") and verdict.worst.fix == verdict.gpus[1].worst.fix


def test_the_interpreter_says_nothing_of_a_gpu(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=1, device="cpu"), {(0, 0): {"device": "cpu"}})
    assert conclude(run).verdict is Verdict.PASS
    assert states(judged(run)) == ["UNKNOWN"] and judged(run).worst.reason == "rank 0: no GPU was checked"


@pytest.mark.parametrize(
    ("item", "state", "blames"),
    [
        ({"kind": Xid(79, "", "").kind}, "CRITICAL", GPU),
        ({"kind": Xid(94, "", "").kind}, "WARNING", GPU),
        ({"kind": Xid(31, "", "").kind}, "WARNING", SOFTWARE),
        ({"kind": Xid(9999, "", "").kind}, "WARNING", SOFTWARE),
        ({"kind": "uncorrected"}, "CRITICAL", GPU),
        ({"kind": "remap failed"}, "CRITICAL", GPU),
        *(({"kind": kind}, "WARNING", GPU) for kind in ("corrected", "remapped", "remap pending", "nvlink", "slowed")),
        *(({"kind": kind}, "PASS", "") for kind in ("nvlink corrected", "slowed by software", "from a newer version")),
        ({}, "PASS", ""),
    ],
)
def test_what_the_driver_said_of_a_gpu_that_computed_right(
    synthetic: Synthetic, item: dict[str, Any], state: str, blames: str
) -> None:
    run = synthetic.run(synthetic.plan(ranks=2))
    run.driver = [{"rank": 1, "text": "its words", **item}, {"rank": None, "text": "of no rank", **item}]
    first, second = judged(run).gpus
    assert first.worst.state is NodeState.PASS
    assert (second.worst.state.value, second.worst.blames) == (state, blames)
    assert state == "PASS" or (second.worst.reason == "its words" and second.worst.fix)


def test_each_kind_that_nvml_tells_of_means_something() -> None:
    from gpucheck.diagnose.node_verdict import _WORDS
    from gpucheck.host.nvml_process import State, words

    links = {(0, "replays"): 1, (0, "CRC errors"): 10**6}
    told = {
        kind
        for kind, _ in words(State(0, 0, 0, False, False, dict.fromkeys(links, 0)), State(1, 1, 1, True, True, links))
    }
    told -= {"nvlink corrected"}  # mended errors are a note, whatever their number
    assert {*told, "slowed", *(Xid(number, "", "").kind for number in (79, 94, 31))} == {*_WORDS}


def test_software_is_not_blamed_on_the_gpu_nor_the_gpu_on_software(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(ranks=2))

    def of(cause: str, **more: Any) -> NodeVerdict:
        finding = Finding(f"{cause}: it", True, [0], [], [], "the fix", cause=cause)
        return node_verdict(run, Conclusion(Verdict.FAIL, [replace(finding, **more)]))

    assert of(SUSPECT_GPU.title).worst.blames == GPU
    assert of("faulty multiprocessor").worst.blames == GPU
    assert of("kernel bug").worst.blames == of("screen wrong on every GPU").worst.blames == SOFTWARE
    for cause in ("", "crash", "hang", "undetermined"):
        assert of(cause).worst.blames == UNDECIDED
    accepted = of("kernel bug", fails=False, warns=True, judged="the engine does not reach it")
    assert accepted.gpus[0].worst.state is NodeState.WARNING
    assert "the engine does not reach it" in accepted.gpus[0].worst.reason


def test_of_equally_bad_reasons_the_one_that_blames_the_gpu_comes_first(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=2), {(0, 0): Outcome.MISMATCH})
    run.driver = [{"rank": 0, "text": "Xid 79", "kind": "xid of the GPU"}]
    worst, *further = judged(run).gpus[0].reasons
    assert worst.reason == "Xid 79" and [each.state for each in further] == [NodeState.CRITICAL]


def test_what_concerns_no_rank_makes_the_node_bad(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan())
    finding = Finding("an expected failure did not come", True, [], [], [], "look")
    verdict = node_verdict(run, Conclusion(Verdict.FAIL, [finding]))
    assert states(verdict) == ["PASS"]
    assert (verdict.worst.state, verdict.worst.reason) == (NodeState.CRITICAL, finding.title)
    without = node_verdict(run, Conclusion(Verdict.INCONCLUSIVE))
    assert (without.worst.state, without.worst.reason) == (NodeState.UNKNOWN, "the run ended with INCONCLUSIVE")
