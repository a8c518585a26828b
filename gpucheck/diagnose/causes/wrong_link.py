"""Bytes between two ranks: chunks that come in another's place or not at all, and links that change what they carry."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import TransferFault
from gpucheck.records.run_folder import Run

WRONG_CHUNK = Cause(
    "chunk swapped or dropped",
    means="Bytes of one rank arrived at the wrong place, at the wrong rank, or not at all.",
    shows="The bytes are right ones of another place, another sender or another receiver, or zeros; the finding names "
    "the pair of ranks and the bytes.",
    confirm="The case with send_recv, which moves one pair after the other.",
    fix="Look at offsets, counts and splits on the sender and on the receiver; where a library computed them, at its "
    "version and at NCCL's.",
)
LINK_ERROR = Cause(
    "link error",
    means="Bytes between one pair of ranks arrive changed, again and again in fresh processes, and are no data that "
    "any rank gave.",
    shows="Wrong elements from one sender on one receiver, in several fresh processes; other pairs are right.",
    confirm="gpucheck doctor shows the links of each pair; nvidia-smi nvlink -e counts their errors; "
    "NCCL_P2P_DISABLE=1 takes another way.",
    fix="Take the pair's link out of use (NCCL_P2P_DISABLE=1 for the moment) and have the GPU, its bridge or the slot "
    "examined.",
)
CAUSES = (WRONG_CHUNK, LINK_ERROR)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong bytes of pairs of ranks; those that no rank gave count as a link's where they come again."""
    pairs = {(each.sender, each.receiver): each.fault for each in record.transfers}
    moved = [pair for pair, fault in pairs.items() if fault in (TransferFault.SWAPPED, TransferFault.DROPPED)]
    if moved:
        return Evidence(WRONG_CHUNK, _words(moved))
    changed = [pair for pair, fault in pairs.items() if fault is TransferFault.CORRUPT]
    if changed and answers(run, record).always:
        return Evidence(LINK_ERROR, _words(changed))
    return None


def _words(pairs: list[tuple[int, int]]) -> str:
    return ", ".join(f"rank {sender} to rank {receiver}" for sender, receiver in pairs)
