"""Memory that ran out is named as such."""

from __future__ import annotations

import pytest

from gpucheck.diagnose.causes.out_of_memory import HELD
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import OOM_KILLER, Outcome
from tests.conftest import Synthetic

KILLED = "the process that owns the device was killed by SIGKILL"


@pytest.mark.parametrize(
    ("outcome", "message", "title"),
    [
        (Outcome.ERROR, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", "out of memory: GPU memory"),
        (Outcome.ERROR, "RuntimeError: Triton Error [CUDA]: out of memory", "out of memory: GPU memory"),
        (Outcome.ERROR, "MemoryError: no message", "out of memory: host memory"),
        (Outcome.CRASH, f"{KILLED}, while the {OOM_KILLER} was at work in this machine", "out of memory: host memory"),
        (Outcome.CRASH, KILLED, "crash"),
        (Outcome.ERROR, "OutOfResources: out of resource: shared memory, Required: 9, Limit: 8", "resource limit"),
        (Outcome.ERROR, "ValueError: no", "the library or kernel raised"),
    ],
)
def test_what_ran_out(synthetic: Synthetic, outcome: Outcome, message: str, title: str) -> None:
    end = {"outcome": outcome, "message": message, "kernels": ["_k"], "source": "m.py:3"}
    (finding,) = conclude(synthetic.run(synthetic.plan(cases=1, ranks=2), {(0, 1): end})).findings
    assert (finding.title, finding.ranks) == (title, [1]) and message in finding.cases[0].lines
    if finding.cause == "out of memory":
        assert "asked for at m.py:3; under test: _k" in finding.cases[0].lines


def test_memory_that_others_held(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1)
    run = synthetic.run(plan, {(0, 0): {"outcome": Outcome.ERROR, "message": "OutOfMemoryError: CUDA out of memory."}})
    run.experiments[(0, 0)] = {"repeat": [synthetic.record(plan, 0, 0, experiment="repeat")]}
    (finding,) = conclude(run).findings
    assert finding.cause == "out of memory" and finding.fix == HELD
