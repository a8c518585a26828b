"""Runs of a model of a node with planted faults: what is said of them is what was planted, or that it is not known.

The same code plans the experiments, counts their processes and judges as in a real run; see ``machine``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.causes.undetermined import UNDETERMINED
from gpucheck.diagnose.chance import CONFIDENCE, LEAST_SHARE
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.finding import Finding
from gpucheck.worker.supervisor import judging
from tests.conftest import Synthetic
from tests.diagnose.machine import FAULTY, Fault, Machine, kinds, per_call, per_process

SEED = 12
FEW, MANY = 480, 1600  # draws in each test run, and in make torture
COINS = 200  # runs with a coin that nearly always shows
MOST_FALSE = 0.0025  # share of the draws
FEWEST_RIGHT = 0.75  # of those in which something was seen
ASKED = ("--experiments", "--nproc 2", "repeat = 200", "swap the GPUs", "run without", "on other ranks and nodes")
"""What ``undetermined`` may name as the experiment that can decide."""


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "finished", lambda store, attempt: attempt.record)


def draws(draw: random.Random, count: int) -> Iterator[tuple[str, list[Fault], int]]:
    """A kind of draw, faults and ranks: coins of each rate, each kind of fault, and pairs of kinds."""
    for number in range(count):
        ranks = draw.randint(1, 8)
        known = kinds(ranks, draw)
        if number % 4 == 0:
            yield "a coin for each call", [per_call(draw.uniform(0.02, 0.98))], ranks
        elif number % 4 == 1:
            yield "a coin for each process", [per_process(draw.uniform(0.02, 0.98))], ranks
        elif number % 4 == 2:
            yield "one fault of the catalogue", [known[draw.choice(list(known))]], ranks
        else:
            yield "two of them", [known[name] for name in draw.sample(list(known), 2)], ranks


def said_of(machine: Machine) -> list[Finding]:
    return [finding for finding in conclude(machine.run()).findings if finding.fails]


def standing(found: Sequence[Finding], faults: Sequence[Fault]) -> str:
    causes = {finding.cause for finding in found} - {""}
    planted = frozenset().union(*(fault.causes for fault in faults))
    if causes - planted - {UNDETERMINED.title}:
        return "false"
    return "right" if causes & planted else "undetermined" if causes else "not seen"


@pytest.mark.parametrize(
    ("seed", "count", "runners"),
    [
        (SEED, FEW, 1),
        pytest.param(SEED, MANY, 1, marks=pytest.mark.torture),
        pytest.param(SEED + 1, MANY, 1, marks=pytest.mark.torture),
        pytest.param(SEED + 2, MANY, 4, marks=pytest.mark.torture),
        pytest.param(SEED + 3, MANY, 8, marks=pytest.mark.torture),
    ],
)
def test_causes_that_are_stated_are_those_that_were_planted(
    synthetic: Synthetic, seed: int, count: int, runners: int
) -> None:
    """Whether a rank makes its experiments one by one or several at once."""
    draw, table = random.Random(seed), Counter[tuple[str, str]]()
    wrong = []
    for kind, faults, ranks in draws(draw, count):
        machine = Machine(synthetic, faults, ranks, draw.randrange(1 << 30), draw.choice(["cpu", "cuda"]), runners)
        found = said_of(machine)
        how = standing(found, faults)
        table[(kind, how)] += 1
        if how == "false":
            wrong.append(([fault.name for fault in faults], [finding.title for finding in found]))
        for finding in found:
            if finding.cause == UNDETERMINED.title:
                assert any(words in finding.fix for words in ASKED), finding.fix
    seen = sum(often for (_, how), often in table.items() if how != "not seen")
    assert len(wrong) <= MOST_FALSE * count, (wrong, table)
    assert sum(often for (_, how), often in table.items() if how == "right") >= FEWEST_RIGHT * seen, table


def test_a_fault_of_most_processes_is_not_called_one_of_the_kernel(synthetic: Synthetic) -> None:
    """A coin that spares as few processes as :data:`LEAST_SHARE` says passes for the code in 1% of runs at most."""
    coin, draw = per_process(LEAST_SHARE), random.Random(SEED)
    called = Counter[str]()
    for seed in range(COINS):
        found = said_of(Machine(synthetic, [coin], draw.randint(2, 8), seed, draw.choice(["cpu", "cuda"])))
        called.update({finding.cause for finding in found})
    assert called["kernel bug"] <= (1 - CONFIDENCE) * COINS, called
    assert called["decided anew in each process"] > COINS / 2, called


@pytest.mark.parametrize(("ranks", "runners"), [(2, 1), (4, 1), (8, 1), (2, 8), (4, 8)])
def test_each_kind_of_fault_is_named_where_nothing_else_is_wrong(
    synthetic: Synthetic, ranks: int, runners: int
) -> None:
    for name, fault in kinds(ranks, random.Random(SEED + ranks)).items():
        for seed in range(6):
            found = said_of(Machine(synthetic, [fault], ranks, seed, "cuda", runners))
            how = standing(found, [fault])
            assert how != "false", (name, seed, found)
            if how == "right":
                break
        assert how == "right" or (name == "first call" and ranks == 2), (name, how)  # neither rank begins with the case


def test_what_undetermined_asks_for_decides(synthetic: Synthetic) -> None:
    """A kernel that one GPU alone runs, and a failure of few calls that does not come again."""
    known = kinds(2, random.Random(SEED))
    (alone,) = said_of(Machine(synthetic, [known["kernel"]], 1, 0, "cuda"))
    assert alone.cause == UNDETERMINED.title and "--nproc 2" in alone.fix
    (two,) = said_of(Machine(synthetic, [known["kernel"]], 2, 0, "cuda"))
    assert two.cause == "kernel bug"
    seldom = [per_call(0.03)]
    seen = ((seed, said_of(Machine(synthetic, seldom, 1, seed, "cpu"))) for seed in range(400))
    seed, (finding,) = next((seed, found) for seed, found in seen if found and "repeat = 200" in found[0].fix)
    often = Machine(synthetic, seldom, 1, seed, "cpu")
    steps = [
        replace(s, conditions=replace(s.conditions, repeat=200 if n == FAULTY else 1))
        for n, s in enumerate(often.plan.steps)
    ]
    often.plan = replace(often.plan, steps=tuple(steps))
    (finding,) = said_of(often)
    assert finding.cause == "race or uninitialised read"


def test_all_ranks_but_one_are_told_alike_and_together(synthetic: Synthetic) -> None:
    """Each swaps with the one that is right, whoever comes next."""
    others = frozenset({1, 2, 3})
    for name, cause in (("environment", "environment of a rank"), ("gpu", "suspect GPU")):
        fault = kinds(4, random.Random(0))[name]
        shows: Any = (lambda call: call.process.rank in others) if name == "environment" else None
        shows = shows or (lambda call: call.process.device in others)
        (finding,) = said_of(Machine(synthetic, [replace(fault, shows=shows)], 4, 0, "cuda"))
        assert (finding.cause, finding.ranks) == (cause, [1, 2, 3])


def test_two_faults_on_two_ranks_are_two_findings(synthetic: Synthetic) -> None:
    known = kinds(4, random.Random(0))
    one = replace(known["environment"], name="one", shows=lambda call: call.process.rank == 1)
    two = replace(known["gpu"], name="two", shows=lambda call: call.process.device == 3)
    found = said_of(Machine(synthetic, [one, two], 4, 0, "cuda"))
    assert {(finding.cause, tuple(finding.ranks)) for finding in found} == {
        ("environment of a rank", (1,)),
        ("suspect GPU", (3,)),
    }
    alike = replace(one, name="two", shows=lambda call: call.process.rank == 3)
    found = said_of(Machine(synthetic, [one, alike], 4, 0, "cuda"))
    assert [(finding.cause, finding.ranks) for finding in found] == [
        ("environment of a rank", [1]),
        ("environment of a rank", [3]),
    ]
