"""Rows of experts that live on other ranks, never written on this one and summed all the same."""

from __future__ import annotations

from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import TransferFault
from gpucheck.records.run_folder import Run

UNWRITTEN_SLOTS = Cause(
    "unwritten slots summed",
    means="Under expert parallelism a rank has rows for some of a token's experts only. The workspace has a row for "
    "each slot; those of experts on other ranks are never written, and the sum over slots takes them all the same.",
    shows="Tokens with a slot whose expert is elsewhere are wrong, and no others, by what memory held before: often "
    "right in a fresh process, whose memory is zero, and wrong in a server that has run for a while. One rank alone is "
    "never wrong, since it has all experts.",
    confirm="gpucheck replay RUN CASE --rank R, or clear the workspace before the product: then the case is right.",
    fix="Let the sum skip slots whose expert id is -1, or clear the workspace before each call.",
)
CAUSES = (UNWRITTEN_SLOTS,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """What memory held shows through just where a token has slots without a row."""
    unwritten = any(each.fault is TransferFault.UNWRITTEN for each in record.transfers)
    return Evidence(UNWRITTEN_SLOTS) if unwritten else None
