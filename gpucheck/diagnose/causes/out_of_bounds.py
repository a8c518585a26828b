"""Kernels that read or write beyond their tensors."""

from __future__ import annotations

from gpucheck.diagnose.answers import Answers, answers, kinds
from gpucheck.diagnose.causes import stream_order
from gpucheck.diagnose.causes.common import Evidence, launched_on_other_stream
from gpucheck.diagnose.error_pattern import NOT_WRITTEN, error_pattern
from gpucheck.diagnose.experiment_list import REPEAT
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

OUTSIDE = Cause(
    "access outside of tensors",
    means="A kernel reads or writes beyond the tensors it was given, or reads memory that was never written.",
    shows="A guard band around a tensor is changed (write), or outputs change with what lies around a tensor "
    "(read). In a server that is another request's data.",
    confirm="The finding names the tensor; compute-sanitizer --tool memcheck finds what crosses an allocation.",
    fix="Mask the load or store, or pad the named tensor to whole tiles.",
)
CAUSES = (OUTSIDE,)

SHOWN = {
    ViolationKind.GUARD: (
        "writes",
        "a store mask or a grid is too wide; compute-sanitizer --tool memcheck names the instruction",
    ),
    ViolationKind.PASSES_DIFFER: (
        "reads",
        "a load past the end without mask, or memory never written; the result depends on what lies there: pad the "
        "named tensor, or use a library whose kernel masks that load",
    ),
}
"""By violation kind, the more telling first: what the kernel does, and what to do."""


def recognise(run: Run, record: Record) -> Evidence | None:
    """A guard band is broken, or outputs change with what lies around the tensors.

    A kernel that does not wait for its inputs finds what their memory held before: that is no access outside either.
    """
    kind = shown(record)
    if kind is ViolationKind.PASSES_DIFFER and (
        launched_on_other_stream(record) and stream_order.recognise(run, record)
    ):
        return None
    if kind is ViolationKind.PASSES_DIFFER and by_luck(answers(run, record)):
        return None
    return Evidence(OUTSIDE, *SHOWN[kind]) if kind else None


def shown(record: Record) -> ViolationKind | None:
    """The kind of violation that shows an access outside; None where none does.

    An output that nobody wrote changes with what lay there before: that is no read.
    """
    seen = kinds(record) - ({ViolationKind.PASSES_DIFFER} if _unwritten(record) else set())
    return next((kind for kind in SHOWN if kind in seen), None)


def _unwritten(record: Record) -> bool:
    """Whether what nobody wrote is all that changes with what memory held: the first output, or parts of later ones."""
    if error_pattern(record) == NOT_WRITTEN:
        return True
    return any(each.poison for each in record.mismatches) and all(
        each.follows == each.poison for each in record.mismatches
    )


def by_luck(seen: Answers) -> bool:
    """Whether outputs followed what memory held by luck: in some fresh process they do not."""
    return not all(ViolationKind.PASSES_DIFFER in kinds(each) for each in seen.processes(REPEAT))
