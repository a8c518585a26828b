"""The report on each kind of fault that a node can have, word by word; what is a cause and when, other tests hold."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Outcome, Violation
from gpucheck.report import blocks
from gpucheck.report.formats.text import plain
from gpucheck.worker.supervisor import judging
from tests.conftest import Synthetic
from tests.diagnose.machine import Machine, kinds

RANKS, SEED = 4, 6
POINTER = "ValueError: Pointer argument (at -1) cannot be accessed from Triton (cpu tensor?)"
VIOLATIONS = ("fallback", "idle", "cached", "inputs", "alias", "settings", "launches", "output", "layout", "reused")
ERRORS = {
    "shared memory": "ResourceLimit: _k needs 1,049,600 bytes of shared memory, a block may use 232,448",
    "grid": "GridLimit: _k was launched with 65,536 blocks on axis 1, at most 65,535; its grid is 1 x 65,536",
    "compiler": "CompilationError: at 3:4: Cannot make_shape_compatible",
    "cache": "JSONDecodeError: Expecting value (damaged cache entry: /c/ABC/k.json)",
    "other": "ValueError: no",
}


@pytest.mark.parametrize("name", kinds(RANKS, random.Random(SEED)))
def test_a_fault_that_experiments_tell_apart(
    synthetic: Synthetic, snapshot: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(judging, "finished", lambda store, attempt: attempt.record)
    fault = kinds(RANKS, random.Random(SEED))[name]
    run = Machine(synthetic, [fault], RANKS, SEED, "cuda").run()
    snapshot(plain(blocks.build(run, conclude(run))))


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_violations(synthetic: Synthetic, snapshot: Callable[[str], None], kind: str) -> None:
    end = {"outcome": Outcome.VIOLATION, "violations": [Violation(kind, "where")]}
    run = synthetic.run(synthetic.plan(cases=1, ranks=2), {(0, 0): end, (0, 1): end})
    snapshot(plain(blocks.build(run, conclude(run))))


@pytest.mark.parametrize("message", ERRORS.values(), ids=ERRORS)
def test_errors(synthetic: Synthetic, snapshot: Callable[[str], None], message: str) -> None:
    end = {"outcome": Outcome.ERROR, "message": message, "source": "mine.py:12"}
    run = synthetic.run(synthetic.plan(cases=1, ranks=2), {(0, 1): end})
    snapshot(plain(blocks.build(run, conclude(run))))
