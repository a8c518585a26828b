"""Ranks that compute another rank's share of the work."""

from __future__ import annotations

from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import TransferFault
from gpucheck.records.run_folder import Run

WRONG_SHARE = Cause(
    "slicing by the wrong rank variable",
    means="A rank cuts its slice of the weights, or its experts, by a number that is not its rank in the group which "
    "shares them: LOCAL_RANK on several nodes, the rank of another group, or the rank of the whole world in a smaller "
    "group. Some shares are then computed twice and others by nobody.",
    shows="The rank's own part, before ranks add anything up, is bit for bit what the share of another rank gives. The "
    "sum is wrong on every rank; ranks whose own part is right are victims. On one node LOCAL_RANK and RANK are equal, "
    "so such a fault shows on the second node first.",
    confirm="gpucheck run SCENARIO --nnodes 2 with the case on two nodes; print the number that the caller slices by.",
    fix="Slice by torch.distributed.get_rank(group) of the group that adds the parts up.",
)
CAUSES = (WRONG_SHARE,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """A part that another rank's share gives exactly; by LOCAL_RANK where that is the number of the other rank."""
    taken = [each for each in record.transfers if each.fault is TransferFault.OTHER_SHARE]
    if not taken:
        return None
    local = record.rank % run.plan.nproc
    by_local = run.plan.nnodes > 1 and all(each.sender == local != record.rank for each in taken)
    return Evidence(WRONG_SHARE, "LOCAL_RANK in place of RANK" if by_local else "")
