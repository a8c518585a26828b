from __future__ import annotations

from typing import Any

import pytest

from gpucheck.diagnose.buildable import unbuildable
from gpucheck.model.record import Outcome
from tests.conftest import Synthetic

IN_LOAD = '  File "/x/gpucheck/library/adapters/__init__.py", line 67, in load\n'
IN_CALL = '  File "/x/gpucheck/library/adapters/v35.py", line 67, in topk\n'


def why(synthetic: Synthetic, outcomes: dict[int, Outcome], optional: tuple[int, ...] = (), **changes: Any) -> str:
    plan = synthetic.plan(cases=3, optional=optional)
    records = {
        (step, 0): synthetic.record(plan, step, 0, outcome, message=f"m{step}", **changes)
        for step, outcome in outcomes.items()
    }
    return unbuildable(synthetic.run(plan, records))  # type: ignore[arg-type]


def test_what_passes_or_fails_is_buildable(synthetic: Synthetic) -> None:
    assert why(synthetic, {}) == ""
    assert why(synthetic, {0: Outcome.MISMATCH, 1: Outcome.HANG}) == ""


def test_an_exception_during_import(synthetic: Synthetic) -> None:
    assert why(synthetic, {1: Outcome.ERROR}, traceback=IN_LOAD) == "the library cannot be imported: m1"
    assert why(synthetic, {1: Outcome.ERROR}, traceback=IN_CALL) == ""
    assert why(synthetic, {1: Outcome.ERROR, 2: Outcome.MISMATCH}, traceback=IN_LOAD).endswith("m1")


def test_a_case_that_must_apply_and_does_not(synthetic: Synthetic) -> None:
    assert why(synthetic, {1: Outcome.INAPPLICABLE}) == "m1"
    assert why(synthetic, {1: Outcome.INAPPLICABLE}, optional=(1,)) == ""
    assert why(synthetic, {1: Outcome.INAPPLICABLE, 2: Outcome.MISMATCH}) == "", "a failure is an answer"


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.HARNESS])
def test_infrastructure_is_no_answer(synthetic: Synthetic, outcome: Outcome) -> None:
    assert why(synthetic, {0: Outcome.INAPPLICABLE, 1: outcome}) == ""


def test_nothing_applies(synthetic: Synthetic) -> None:
    assert why(synthetic, dict.fromkeys(range(3), Outcome.INAPPLICABLE), optional=(0, 1, 2)) == "m0"
