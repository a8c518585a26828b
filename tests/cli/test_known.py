"""Known faults from run to run: what a report says of one that is new, accepted, cured, changed, spread or gone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gpucheck.checks import load
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Step
from gpucheck.model.record import Violation
from gpucheck.model.vocabulary import ViolationKind
from tests.cli.test_accept import REASON, UNTIL, Runs, moment

if TYPE_CHECKING:
    from tests.cli.conftest import Command
    from tests.conftest import Ends, Synthetic

KNOWN = "   known   vllm-unpadded-scales: "
LAST = {"exactly": {"expert": [7]}, "nan": 1920, "wrong": 1920, "total": 5120, "got": None, "ulps": None}
OUTSIDE = "it is read outside of the uint8 tensor of shape (8, 320, 10), scales of the first product"
PADDED, WIDE = {"hidden": 256, "intermediate": 256}, {"hidden": 320, "intermediate": 320}


def wrong(runs: Runs, **changes: Any) -> dict[str, Any]:
    """A block whose scales are read past their end."""
    read = [Violation(ViolationKind.PASSES_DIFFER, OUTSIDE)]
    return {**runs.wrong(**changes), "violations": read, "arithmetic": "sm_90"}


def serving(runs: Runs, name: str, ends: Ends, version: str = "0.25.1", **plan: Any) -> str:
    """A run of vLLM on two ranks, of a block with the shapes of the fault and one without."""
    engine = {"name": "vllm", "version": version, "root": "", "packages": "", "origin": "", "installed": True}
    library = {**runs.plan.library, "generation": "v3.5"}
    return runs.stored(name, ends, engines=(engine,), library=library, **plan)


@pytest.fixture
def runs(gpucheck: Command, here: Path, synthetic: Synthetic) -> Runs:
    """With the fault of ``first`` accepted in ``accepted.toml``: case 0 is wrong on both ranks."""
    spec = load("vllm_moe").spec
    steps = tuple(
        Step(spec.case({"experts": 8, "top_k": 4, **sizes}, "normal", 0), Conditions(engine="vllm"))
        for sizes in (WIDE, PADDED)
    )
    runs = Runs(gpucheck, synthetic, synthetic.plan(steps=steps, ranks=2, created=moment("2026-11-29")), LAST)
    runs.accepted(serving(runs, "first", shown(runs)))
    return runs


def shown(runs: Runs, cases: tuple[int, ...] = (0,), **changes: Any) -> Ends:
    return {(case, rank): wrong(runs, **changes) for case in cases for rank in range(2)}


def test_a_new_one_fails_and_is_told(runs: Runs) -> None:
    answer = runs.gpucheck("report", serving(runs, "second", shown(runs)))
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding\n")
    assert KNOWN in answer.out and "fixed   in vllm 0.26.0" in answer.out


def test_an_accepted_one_passes_and_is_still_told(runs: Runs) -> None:
    answer = runs.report(serving(runs, "second", shown(runs)))
    assert answer.code == 0 and answer.out.startswith("PASS  2 cases on 2 ranks, 1 accepted finding\n")
    assert KNOWN in answer.out and f"accepted until {UNTIL}: {REASON}\n" in answer.out


def test_one_whose_acceptance_expired_fails_and_is_still_told(runs: Runs) -> None:
    answer = runs.report(serving(runs, "second", shown(runs), created=moment("2027-02-01")))
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding\n")
    assert KNOWN in answer.out and "that day has passed, this run is of 2027-02-01" in answer.out


def test_the_same_with_a_release_that_is_good_fails_and_is_another_fault(runs: Runs) -> None:
    answer = runs.report(serving(runs, "second", shown(runs), version="0.26.0"))
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding\n")
    assert KNOWN not in answer.out and "the content of vllm was 0.25.1, is 0.26.0" in answer.out


def test_one_that_changed_fails_and_is_another_fault(runs: Runs) -> None:
    answer = runs.report(serving(runs, "second", shown(runs, exactly={"expert": [3]})))
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding\n")
    assert KNOWN not in answer.out and "y was wrong in exactly expert 7" in answer.out


def test_one_that_spreads_fails_where_it_is_not_known(runs: Runs) -> None:
    answer = runs.report(serving(runs, "second", shown(runs, cases=(0, 1))))
    failing, accepted = answer.out.split("\n2  accepted: ")
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding, 1 accepted finding\n")
    assert KNOWN not in failing and KNOWN in accepted


def test_one_that_is_gone_passes_and_is_noted(runs: Runs) -> None:
    answer = runs.report(serving(runs, "second", {}))
    assert answer.code == 0 and answer.out.startswith("PASS  2 cases on 2 ranks\n")
    assert KNOWN not in answer.out and "note  accepted fault shows no longer: vllm_moe/" in answer.out
