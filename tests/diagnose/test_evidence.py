"""Experiments in words and numbers, and which are made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gpucheck.diagnose.evidence import answers, interval, rate_words, repeated
from gpucheck.diagnose.experiments import EXPERIMENTS, applicable
from gpucheck.model.conditions import Conditions
from gpucheck.model.record import Outcome, Violation

if TYPE_CHECKING:
    from tests.conftest import Synthetic

ORDER = list(EXPERIMENTS).index


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(0, 5, 0.0, 0.4345), (5, 5, 0.5655, 1.0), (1, 2, 0.0945, 0.9055), (30, 100, 0.2189, 0.3959)],
)
def test_interval_of_a_rate(hits: int, trials: int, low: float, high: float) -> None:
    assert interval(hits, trials) == pytest.approx((low, high), abs=1e-4)


def names(synthetic: Synthetic, outcome: Outcome, device: str = "cuda", ranks: int = 2, **changes: Any) -> list[str]:
    conditions = Conditions(**changes.pop("conditions", {}))
    record = synthetic.record(synthetic.plan(), 0, 0, outcome, **changes)
    return [name for name, _ in applicable(record, conditions, device, ranks)]


def test_experiments_of_a_wrong_output(synthetic: Synthetic) -> None:
    usual = ["repeat", "other rank", "other device", "synchronised", "visible", "fresh cache", "alone"]
    assert names(synthetic, Outcome.MISMATCH) == usual
    assert names(synthetic, Outcome.MISMATCH, ranks=1) == ["repeat", "synchronised", "visible", "fresh cache"]
    assert names(synthetic, Outcome.MISMATCH, device="cpu") == ["repeat", "other rank", "other device", "alone"]
    group = {"process_group": "initialised", "concurrency": 4}
    assert names(synthetic, Outcome.MISMATCH, conditions=group)[:3] == ["repeat", "no group", "one thread"]
    peer = names(synthetic, Outcome.MISMATCH, conditions={"placement": "peer"})
    assert "guarded" in peer and "other device" not in peer
    threads = names(synthetic, Outcome.MISMATCH, conditions={"placement": "threads"})
    assert "one thread" in threads and not {"alone", "other rank", "other device"} & {*threads}


def test_experiments_that_would_tell_nothing_are_not_made(synthetic: Synthetic) -> None:
    assert names(synthetic, Outcome.HANG) == ["alone"]
    assert names(synthetic, Outcome.LOST) == names(synthetic, Outcome.INAPPLICABLE) == []
    located = [Violation("passes differ", "read outside")]
    assert names(synthetic, Outcome.VIOLATION, violations=located) == []
    away = [Violation("device", "away")]
    assert names(synthetic, Outcome.VIOLATION, violations=away, conditions={"placement": "peer"}) == [
        "guarded",
        "visible",
    ]


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_each_experiment_changes_one_condition(name: str) -> None:
    stressed = Conditions("peer", "initialised", consumer="prompt", concurrency=3)
    changed = EXPERIMENTS[name].change(stressed)
    assert changed is not None
    different = [field for field, value in vars(changed).items() if value != vars(stressed)[field]]
    assert len(different) == 1


@pytest.mark.parametrize(
    ("outcome", "changes", "ending"),
    [
        (Outcome.MISMATCH, {"wrong": 5, "repeats": 5}, ": deterministic"),
        (Outcome.MISMATCH, {"wrong": 5, "repeats": 5, "distinct": 2}, ": wrong every time, but not deterministic"),
        (
            Outcome.MISMATCH,
            {"wrong": 2, "repeats": 5, "distinct": 2},
            "; rate 40%, 95% interval 12% to 77%: intermittent",
        ),
        (
            Outcome.MISMATCH,
            {"wrong": 3, "repeats": 5, "distinct": 2, "violations": [Violation("passes differ", "read outside")]},
            "2 different outputs, one for each content of memory that is not the input's: deterministic",
        ),
        (Outcome.PASS, {"repeats": 5}, ": not reproduced"),
    ],
)
def test_a_retest_is_classified(synthetic: Synthetic, outcome: Outcome, changes: dict[str, Any], ending: str) -> None:
    assert repeated(synthetic.record(synthetic.plan(), 0, 0, outcome, **changes)).endswith(ending)


@pytest.mark.parametrize(
    ("hits", "trials", "words"),
    [
        (0, 100, "rate 0.00%, 95% interval 0.00% to 3.70%"),
        (3, 412, "rate 0.73%, 95% interval 0.25% to 2.12%"),
        (30, 100, "rate 30%, 95% interval 22% to 40%"),
        (5, 5, "rate 100%, 95% interval 57% to 100%"),
    ],
)
def test_rates_in_words(hits: int, trials: int, words: str) -> None:
    assert rate_words(hits, trials) == words


@pytest.mark.parametrize("third", ["d", "other", "seldom"])
def test_ranks_that_gave_the_same_bits_share_their_answers(synthetic: Synthetic, third: str) -> None:
    """But for the repeats, which each makes itself; where one rank of the node gave other bits, nobody shares.

    A rank whose bits are not wrong every time takes no answers of others, which ran too seldom for it.
    """
    plan = synthetic.plan(cases=1, ranks=3)
    wrong = {
        (0, rank): synthetic.record(
            plan, 0, rank, Outcome.MISMATCH, digests={"y": "e" if rank == 2 and third == "other" else "d"}
        )
        for rank in range(3)
    }
    made = {(0, 0): ("fresh cache", "repeat"), (0, 1): ("repeat", "other rank"), (0, 2): ("repeat",)}
    experiments = {
        key: {name: synthetic.record(plan, *key, Outcome.MISMATCH, experiment=name, wrong=1) for name in names}
        for key, names in made.items()
    }
    if third == "seldom":
        again = experiments[(0, 2)]["repeat"]
        experiments[(0, 2)]["repeat"] = replace(again, repeats=5)
    run = replace(synthetic.run(plan, wrong), experiments=experiments)
    for rank in range(3):
        tried = answers(run, wrong[(0, rank)]).tried
        alike = third != "other" and (third, rank) != ("seldom", 2)
        assert list(tried) == (["repeat", "other rank", "fresh cache"] if alike else sorted(made[(0, rank)], key=ORDER))
        assert tried["repeat"].rank == rank
