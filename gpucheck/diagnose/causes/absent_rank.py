"""Cases of ranks together that did not end: a rank that did not come to a call, or a call that does not end."""

from __future__ import annotations

from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

ABSENT = Cause(
    "absent rank",
    means="A rank did not come to a collective call in which the other ranks waited for it, so none of them could go "
    "on. The fault is on that rank, and before that call.",
    shows="HG in the matrix on the rank that did not come, with the call in question and its Python stacks; the other "
    "ranks are victims, and their processes were ended too. The next case starts a new process group.",
    confirm="gpucheck run SCENARIO --case ID --case-timeout 600: a rank that comes then is slow and does not hang.",
    fix="Look at the top of the stack of that rank: at what it does between its last call and the one in question.",
)
ENDLESS = Cause(
    "collective call without end",
    means="All ranks of a group came to one call, with equal sizes, and it did not end: the fault lies in the "
    "communication library, its transport or a link, not in a rank that called.",
    shows="HG in the matrix on all ranks of the call; each has the call as the one it is in.",
    confirm="NCCL_DEBUG=INFO, then NCCL_P2P_DISABLE=1 and NCCL_ALGO=Ring with the same case: what changes it tells the "
    "transport.",
    fix="Look at the links between these GPUs (gpucheck doctor, nvidia-smi nvlink -e) and at NCCL's version.",
)
CAUSES = (ABSENT, ENDLESS)
WAITED = "waited"  # how a rank ended that was at work until it was killed


def recognise(run: Run, record: Record) -> Evidence | None:
    """A hang of a case that ranks run together, by how far each of them came."""
    if record.outcome is not Outcome.HANG or not record.progress:
        return None
    own = next((part for part in record.progress if part.rank == record.rank), None)
    if own is not None and own.signature and "did not end" in record.message and (own.inside or _all_wait(run, record)):
        return Evidence(ENDLESS, own.operation)
    return Evidence(ABSENT)


def _all_wait(run: Run, record: Record) -> bool:
    """Whether all ranks were at one call and had not ended on a GPU, where calls return before they have ended."""
    calls = {(part.operation, part.number, part.signature) for part in record.progress}
    return run.plan.device == "cuda" and len(calls) == 1 and all(part.state == WAITED for part in record.progress)
