"""A case that the fault of another rank's process stopped is told from one that is at fault itself."""

from __future__ import annotations

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Verdict
from tests.conftest import Synthetic

XID = "NVRM: Xid (PCI:0000:00:06): 31, pid={}, name=python3, channel 0x0000001e, intr 00000000. MMU Fault"
TITLE = "interference between ranks: stopped by a fault of rank 1 on its GPU"


def hang_of_rank_0(
    synthetic: Synthetic, *, pid: int = 9047, gpu: int = 0, again: Outcome | None = None, host: str = "a"
) -> Finding:
    """The finding about a hang of rank 0, while process 9047 of rank 1 crashed and the driver blamed ``pid``."""
    plan = synthetic.plan(cases=2, ranks=2)
    hung = {"outcome": Outcome.HANG, "pid": 8000, "host": "a", "message": "no result within 60 s"}
    crashed = {"outcome": Outcome.CRASH, "pid": 9047, "host": host, "message": "killed by SIGABRT"}
    run = synthetic.run(plan, {(0, 0): hung, (1, 1): crashed})
    run.driver = [{"rank": gpu, "text": XID.format(pid)}]
    if again:
        run.experiments[(0, 0)] = {"alone": [synthetic.record(plan, 0, 0, again, experiment="alone")]}
    conclusion = conclude(run)
    assert conclusion.verdict is Verdict.FAIL and len(conclusion.findings) == 2
    return next(finding for finding in conclusion.findings if finding.ranks == [0])


@pytest.mark.parametrize("again", [None, Outcome.PASS])
def test_the_process_at_fault_is_named(synthetic: Synthetic, again: Outcome | None) -> None:
    finding = hang_of_rank_0(synthetic, again=again)
    assert finding.title == TITLE and "fix what failed on that rank" in finding.fix
    lines = finding.cases[0].lines
    assert "at fault: process 9047 of rank 1, in matmul/1/exact" in lines and "no result within 60 s" in lines
    assert finding.driver == [XID.format(9047)]


def test_others_are_not_blamed(synthetic: Synthetic) -> None:
    assert hang_of_rank_0(synthetic, pid=8000).title == "hang"  # its own process
    assert hang_of_rank_0(synthetic, pid=7).title == "hang"  # somebody else's
    assert hang_of_rank_0(synthetic, gpu=1).title == "hang"  # on another GPU
    assert hang_of_rank_0(synthetic, again=Outcome.HANG).title == "hang"  # it hangs by itself
    assert hang_of_rank_0(synthetic, host="b").title == "hang"  # the number is another machine's
