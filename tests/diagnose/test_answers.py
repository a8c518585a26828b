"""Experiments in words and numbers, and which are made."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.answers import Answers, alike, answers, repeated
from gpucheck.diagnose.chance import (
    CONFIDENCE,
    EVERY_TIME,
    LEAST_SHARE,
    LUCK,
    by_luck,
    calls_needed,
    interval,
    one_rate,
    rate_words,
    share_at_least,
)
from gpucheck.diagnose.experiment_list import EXPERIMENTS, HISTORY, REPEAT, applicable
from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.record import Outcome, Record, Transfer, Violation
from gpucheck.model.vocabulary import ExperimentName, TransferFault
from gpucheck.plan.scenario_conditions import needs_gpus
from tests.conftest import Synthetic


@pytest.mark.parametrize(
    ("hits", "runs", "limits", "words"),
    [
        (0, 5, (0.0, 0.4345), "rate 0.00%, 95% interval 0.00% to 43.45%"),
        (5, 5, (0.5655, 1.0), "rate 100%, 95% interval 57% to 100%"),
        (1, 2, (0.0945, 0.9055), "rate 50%, 95% interval 9% to 91%"),
        (30, 100, (0.2189, 0.3959), "rate 30%, 95% interval 22% to 40%"),
        (0, 100, (0.0, 0.0370), "rate 0.00%, 95% interval 0.00% to 3.70%"),
        (3, 412, (0.0025, 0.0212), "rate 0.73%, 95% interval 0.25% to 2.12%"),
    ],
)
def test_the_interval_of_a_rate_and_its_words(hits: int, runs: int, limits: tuple[float, float], words: str) -> None:
    assert interval(hits, runs) == pytest.approx(limits, abs=1e-4)
    assert rate_words(hits, runs) == words


def names(synthetic: Synthetic, outcome: Outcome, device: str = "cuda", ranks: int = 2, **changes: Any) -> list[str]:
    conditions = Conditions(**changes.pop("conditions", {}))
    record = synthetic.record(synthetic.plan(), 0, 0, outcome, **changes)
    return [name for name, _ in applicable(record, conditions, device, ranks)]


def test_experiments_of_a_wrong_output(synthetic: Synthetic) -> None:
    usual = ["repeat", "history", "other rank", "other device", "synchronised", "visible", "fresh cache", "alone"]
    assert names(synthetic, Outcome.MISMATCH) == usual
    single = {"other rank", "other device", "alone"}
    assert names(synthetic, Outcome.MISMATCH, ranks=1) == [name for name in usual if name not in single]
    gpus = {"synchronised", "visible", "fresh cache"}
    assert names(synthetic, Outcome.MISMATCH, device="cpu") == [name for name in usual if name not in gpus]
    group = {"process_group": "initialised", "concurrency": 4}
    assert names(synthetic, Outcome.MISMATCH, conditions=group)[:4] == ["repeat", "history", "no group", "one thread"]
    peer = names(synthetic, Outcome.MISMATCH, conditions={"placement": "peer"})
    assert "guarded" in peer and "other device" not in peer
    threads = names(synthetic, Outcome.MISMATCH, conditions={"placement": "threads"})
    assert "one thread" in threads and not {"alone", "other rank", "other device"} & {*threads}


def test_experiments_that_would_tell_nothing_are_not_made(synthetic: Synthetic) -> None:
    assert names(synthetic, Outcome.HANG) == ["alone"]
    assert names(synthetic, Outcome.LOST) == names(synthetic, Outcome.INAPPLICABLE) == []
    located = [Violation("passes differ", "read outside")]
    by_luck = "it may have followed the fill by luck"
    assert names(synthetic, Outcome.VIOLATION, violations=located) == ["repeat"], by_luck
    assert names(synthetic, Outcome.VIOLATION, violations=[Violation("guard", "2 bytes")]) == []
    away = {"violations": [Violation("device", "away")], "conditions": {"placement": "peer"}}
    assert names(synthetic, Outcome.VIOLATION, **away) == ["guarded", "visible"]


@pytest.mark.parametrize("name", sorted({*EXPERIMENTS} - {REPEAT, HISTORY}))
def test_each_experiment_changes_one_condition(name: ExperimentName) -> None:
    alone = Conditions("peer", "initialised", consumer="prompt", concurrency=3)
    warm = Conditions(late=True, stream="side", cache="cold", warm_up=True)
    joint = Conditions(process_group=TOGETHER, stream="side")
    pairs = [(vars(stressed), EXPERIMENTS[name].change(stressed)) for stressed in (alone, warm, joint)]
    different = [sum(value != before[key] for key, value in vars(after).items()) for before, after in pairs if after]
    assert 1 in different, "it changes one condition of a case under stress, and no other"


def test_no_experiment_on_the_cpu_asks_for_what_needs_a_gpu(synthetic: Synthetic) -> None:
    """It would end in an error that says nothing about the case."""
    threads, joint = Conditions("threads"), Conditions(process_group=TOGETHER)
    for conditions in (Conditions("cpu"), threads, joint, Conditions("cpu", "initialised", concurrency=3)):
        for outcome in (Outcome.MISMATCH, Outcome.ERROR, Outcome.CRASH, Outcome.HANG):
            failed = synthetic.record(synthetic.plan(cases=1), 0, 0, outcome)
            asked = {name: needs_gpus(changed) for name, changed in applicable(failed, conditions, "cpu", 2)}
            assert not {name: reason for name, reason in asked.items() if reason}


def test_every_experiment_that_has_a_name_has_a_row() -> None:
    assert {*EXPERIMENTS} == {*ExperimentName}


def test_an_experiment_that_gives_no_answer_is_told(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1)
    wrong = synthetic.record(plan, 0, 0, Outcome.MISMATCH, asked=8)
    attempts = {ExperimentName.REPEAT: [wrong] * 5, ExperimentName.VISIBLE: [synthetic.record(plan, 0, 0)] * 8}
    error = [synthetic.record(plan, 0, 0, Outcome.ERROR)]
    for made, line in (
        (error, "no answer with synchronised launches (1x error)"),
        (error + attempts[ExperimentName.VISIBLE][:2], "no answer with synchronised launches (1x error)"),
        ([wrong], "wrong with synchronised launches"),
        ([wrong, *error], "wrong with synchronised launches (2 processes)"),
    ):
        lines = Answers(wrong, {**attempts, ExperimentName.SYNCHRONISED: made}).lines()
        assert line in lines and len(lines) == 3, lines


def test_a_case_that_ranks_run_together_is_tried_together_only(synthetic: Synthetic) -> None:
    joint = {"conditions": {"process_group": TOGETHER}}
    assert names(synthetic, Outcome.MISMATCH, **joint) == ["repeat", "in step"]
    assert names(synthetic, Outcome.HANG, **joint) == []
    assert "in step" not in names(synthetic, Outcome.MISMATCH)


def test_bytes_that_are_wrong_in_other_ways_do_not_fail_alike(synthetic: Synthetic) -> None:
    def wrong(fault: TransferFault) -> Record:
        transfer = Transfer(0, 1, fault, "out0", 0, 3, 1, 4)
        return synthetic.record(synthetic.plan(), 0, 1, Outcome.MISMATCH, transfers=[transfer])

    dropped, corrupt = wrong(TransferFault.DROPPED), wrong(TransferFault.CORRUPT)
    assert alike(dropped, wrong(TransferFault.DROPPED)) and not alike(dropped, corrupt)


def test_processes_that_fail_in_a_row_by_luck_are_rare() -> None:
    """Of five failures among 13 processes, all are the first five in one way of 1,287."""
    assert by_luck(5, 5, 8) == pytest.approx(1 / math.comb(13, 5))
    assert by_luck(5, 5, 8) < LUCK < by_luck(5, 5, 7)
    assert by_luck(1, 5, 200) > LUCK, "one failure proves nothing"
    assert one_rate(20, 4) == pytest.approx((5 / 6) ** 20 * (1 / 6) ** 4) and one_rate(40, 0) == 1


def test_processes_that_all_fail_bound_the_share_of_those_that_do() -> None:
    """The bound is exact: a share of just so much gives as many failures in a row in 1% of all runs."""
    for count in (1, 5, 32, EVERY_TIME):
        assert share_at_least(count) ** count == pytest.approx(1 - CONFIDENCE)
    assert share_at_least(EVERY_TIME - 1) < LEAST_SHARE <= share_at_least(EVERY_TIME)


def test_calls_of_a_process_show_what_comes_and_goes() -> None:
    assert [calls_needed(rate) for rate in (1.0, 0.5, 0.1, 0.05, 0.001, 0.0)] == [8, 8, 22, 45, 64, 64]


BAD, GOOD = Outcome.MISMATCH, Outcome.PASS
LACKS: Any = (Outcome.ERROR, {"message": "RuntimeError: Triton Error [CUDA]: out of memory"})


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        ([(BAD, {})] * 5, "wrong in 5 of 5 fresh processes, the same bits in each call: deterministic"),
        (
            [(BAD, {"digests": {"y": str(n)}}) for n in range(5)],
            "all calls of a process alike: decided anew in each process",
        ),
        (
            [(BAD, {}), (GOOD, {}), (Outcome.ERROR, {}), (Outcome.ERROR, {})],
            "wrong in 1 of 4 fresh processes, 2 of them without an answer: 2x error",
        ),
        (
            [(BAD, {"calls": [*"aab"[n:], *"ab"], "bad_calls": [1], "asked": 5}) for n in range(3)]
            + [(GOOD, {"asked": 4})],
            "wrong in 3 of 4 fresh processes, 3 of 16 calls; rate 19%, 95% interval 7% to 43%: intermittent",
        ),
        (
            [(BAD, {"calls": list("abba"), "by_fill": True, "violations": [Violation("passes differ", "d")]})] * 2,
            "wrong in 2 of 2 fresh processes, one output for each content of memory that is not the input's",
        ),
        ([(BAD, {"calls": list("abab")})] * 4, "in the same calls of each: every second of 4 calls gave other bits"),
        ([(GOOD, {"asked": 8})] * 5, "right in all of 5 fresh processes, 40 calls: not reproduced"),
        (
            [(BAD, {"calls": list("abab")})] * 4 + [LACKS],
            "in the same calls of each: every second of 4 calls gave other bits, whatever memory held before; "
            "1 fresh process lacked memory",
        ),
        ([LACKS, (BAD, {})], "wrong in 1 of 1 fresh process, the same bits in each call: deterministic; 1 fresh"),
        ([LACKS] * 2, "no answer: 2 fresh processes lacked memory"),
        (
            [(BAD, {"calls": list("abab"), "bad_calls": [1, 3]})] * 4 + [(Outcome.CRASH, {"message": "it died"})],
            "wrong in 4 of 5 fresh processes, in the same calls of each: every second of 4 calls gave other bits",
        ),
    ],
)
def test_a_retest_is_classified(synthetic: Synthetic, processes: list[Any], words: str) -> None:
    plan = synthetic.plan()
    alone = [synthetic.record(plan, 0, 0, outcome, **changes) for outcome, changes in processes]
    assert words in repeated(synthetic.record(plan, 0, 0, BAD), alone)


@pytest.mark.parametrize("outcome", [LACKS[0], Outcome.HARNESS])
def test_a_process_that_lacked_memory_decides_nothing_but_where_that_is_the_failure(
    synthetic: Synthetic, outcome: Outcome
) -> None:
    """One of them made calls that differ alike in each process look as if they came and went."""
    plan = synthetic.plan()
    lacks = synthetic.record(plan, 0, 0, outcome, **LACKS[1])
    wrong = synthetic.record(plan, 0, 0, BAD, calls=list("abab"), bad_calls=[1, 3])
    seen = Answers(wrong, {REPEAT: [wrong, lacks, *[wrong] * 3], ExperimentName.SYNCHRONISED: [wrong, lacks]})
    assert seen.by_number and seen.always and not seen.by_call
    assert seen.wrong(ExperimentName.SYNCHRONISED) and not seen.right(ExperimentName.SYNCHRONISED)
    assert (len(seen.processes(REPEAT)), seen.made(REPEAT)) == (4, 5)
    assert Answers(lacks, {REPEAT: [lacks] * 2}).always
    silent = Answers(wrong, {REPEAT: [wrong], ExperimentName.SYNCHRONISED: [lacks] * 2}).lines()
    assert silent[-1] == f"no answer {EXPERIMENTS[ExperimentName.SYNCHRONISED].words} (2x {outcome.value})"


@pytest.mark.parametrize("third", ["d", "other", "seldom"])
def test_ranks_that_gave_the_same_bits_share_their_answers(synthetic: Synthetic, third: str) -> None:
    """But for the repeats, which each makes itself.

    A rank with other bits, or with bits that are not wrong every time, neither gives nor takes.
    """
    plan = synthetic.plan(cases=1, ranks=3)
    bits = {rank: "e" if rank == 2 and third == "other" else "d" for rank in range(3)}
    wrong = {(0, rank): synthetic.record(plan, 0, rank, BAD, digests={"y": bits[rank]}) for rank in range(3)}
    made = {(0, 0): ("fresh cache", "repeat"), (0, 1): ("repeat", "other rank"), (0, 2): ("repeat",)}
    experiments = {key: {name: [replace(wrong[key], experiment=name)] for name in names} for key, names in made.items()}
    if third == "seldom":
        experiments[(0, 2)]["repeat"].append(synthetic.record(plan, 0, 2))
    run = replace(synthetic.run(plan, wrong), experiments=experiments)
    for rank in range(3):
        tried = answers(run, wrong[(0, rank)]).tried
        alike = third == "d" or rank < 2
        assert list(tried) == (["repeat", "other rank", "fresh cache"] if alike else ["repeat"])
        assert tried["repeat"][0].rank == rank
