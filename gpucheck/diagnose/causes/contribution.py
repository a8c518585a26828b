"""Reductions over ranks: a rank that reduces wrongly, or a result without what one of the ranks gave."""

from __future__ import annotations

from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import TransferFault
from gpucheck.records.run_folder import Run

MISSING_CONTRIBUTION = Cause(
    "missing contribution",
    means="The result of a reduction lacks what one rank gave, or has it twice.",
    shows="The result less what this rank gave, or plus it, bit for bit in the whole region; exact data rule out "
    "chance. Missing on all receivers points at the rank that gave it; on one, at that receiver or the link between.",
    confirm="The finding names the pair; all_gather of the same data shows whether they arrive.",
    fix="Look for a group that lacks the rank, a mask that takes its part out, or a buffer that is reduced before it "
    "is filled; twice: a part that is reduced by two groups.",
)
WRONG_REDUCTION = Cause(
    "wrong reduction",
    means="The result of a reduction on a rank is no sum, or largest, of what the ranks gave: not with one left out "
    "or taken twice, and not with data of another round.",
    shows="Wrong elements on that rank; other ranks have the right result of the same operation.",
    confirm="The same case with send_recv or all_gather: where these are right, what arrives is right, the sum is not.",
    fix="Look at the reduction kernel and the precision it adds in, and at what writes to the buffer after it; if it "
    "stays with the GPU, run gpucheck doctor and the vendor's diagnostics.",
)
CAUSES = (MISSING_CONTRIBUTION, WRONG_REDUCTION)


def recognise(run: Run, record: Record) -> Evidence | None:
    """A wrong result of a reduction, explained by whose contribution is not in it once."""
    for kind, word in ((TransferFault.MISSING, "lacks"), (TransferFault.TWICE, "has twice what came from")):
        senders = {each.sender for each in record.transfers if each.fault is kind}
        if senders:
            receivers = _receivers(run, record.step, kind, senders)
            return Evidence(MISSING_CONTRIBUTION, f"{rank_list(receivers)} {word} {rank_list(senders)}")
    if any(each.fault is TransferFault.REDUCED for each in record.transfers):
        ranks = _receivers(run, record.step, TransferFault.REDUCED, None)
        return Evidence(WRONG_REDUCTION, f"on {rank_list(ranks)}")
    return None


def _receivers(run: Run, step: int, kind: TransferFault, senders: set[int] | None) -> set[int]:
    """The ranks that show the same."""
    return {
        rank
        for rank in run.ranks
        for each in run.records[(step, rank)].transfers
        if each.fault is kind and (senders is None or each.sender in senders)
    }
