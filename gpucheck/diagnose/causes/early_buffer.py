"""Buffers that are sent before they are written, or read before what was sent has come."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName, TransferFault
from gpucheck.records.run_folder import Run

EARLY_BUFFER = Cause(
    "stale or early buffer",
    means="A rank gave what its buffer had held before, or read a buffer before what was sent had come: nothing made "
    "the communication wait for the producer, or the reader for the communication.",
    shows="Stale: the bytes are those that the sender gave in the round before. Early: they are what the receiver's "
    "buffer held before. Right when each operation is waited for, unless the wrong buffer is sent every time.",
    confirm="The finding says whether the case is right with the ranks in step; on GPUs, --debug waits for launches.",
    fix="Wait for the work of an asynchronous call before its buffers are read or written again; make the stream of "
    "the communication wait for that of the producer, and the reader's for that of the communication.",
)
CAUSES = (EARLY_BUFFER,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong bytes that a buffer held before, or that come right when each operation is waited for."""
    stale = {each.sender for each in record.transfers if each.fault is TransferFault.STALE}
    if stale:
        return Evidence(EARLY_BUFFER, f"stale, given by {rank_list(stale)}")
    if any(each.fault is TransferFault.EARLY for each in record.transfers):
        return Evidence(EARLY_BUFFER, f"early, read by {rank_list([record.rank])}")
    if record.transfers and answers(run, record).separates(ExperimentName.IN_STEP):
        return Evidence(EARLY_BUFFER, f"from {rank_list({each.sender for each in record.transfers})}")
    return None
