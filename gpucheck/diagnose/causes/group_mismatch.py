"""Ranks that called different collective operations, or one with different sizes."""

from __future__ import annotations

from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

GROUP_MISMATCH = Cause(
    "group mismatch",
    means="Ranks of one process group called different collective operations at the same place of their order, or one "
    "operation with different sizes, types, roots or reductions. What then happens is undefined: a hang, an error, a "
    "process that ends, or wrong numbers on ranks that called the right thing.",
    shows="The finding gives, call for call, what each rank called. The rank that called something else than most is "
    "named; where it is a draw, all are. The other ranks are victims.",
    confirm="TORCH_DISTRIBUTED_DEBUG=DETAIL makes torch itself compare each call, and raise where ranks differ.",
    fix="Look for host code that decides by rank what it calls or how large its tensors are: uneven batches, experts "
    "without tokens that skip a call, sizes from a configuration that only some ranks have.",
)
CAUSES = (GROUP_MISMATCH,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """A record that tells of one call in which ranks differ."""
    told = {part.signature for part in record.progress if part.signature}
    places = {(*part.members, part.number) for part in record.progress if part.signature}
    blamed = any(violation.kind is ViolationKind.GROUP for violation in record.violations)
    if not blamed and not (len(told) > 1 and len(places) == 1 and record.victim_of is None):
        return None
    operations = {part.operation for part in record.progress if part.operation}
    detail = "other sizes" if len(operations) == 1 else "other operations" if operations else ""
    return Evidence(GROUP_MISMATCH, detail)
