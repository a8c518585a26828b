"""Kernels whose autotuner tries configurations on the tensors of a call."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, findings, what
from gpucheck.diagnose.causes.pages import AUTOTUNED
from gpucheck.diagnose.experiment_list import REPEAT
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]

FIRST = "wrong in the first call alone"


def recognise(run: Run, record: Record) -> Evidence | None:
    """The call that was tuned gave other bits than all after it, here and again in a fresh process.

    A configuration that writes less than others leaves memory as it was in every later call; one that works in place
    is applied several times in the first.
    """
    again = answers(run, record).processes(REPEAT)
    if not again or not all(map(_differs, (record, *again))):
        return None
    return Evidence(AUTOTUNED, FIRST if record.bad_calls == [0] else what(record))


def _differs(record: Record) -> bool:
    kinds = {violation.kind for violation in record.violations}
    return ViolationKind.TUNING_DIFFERS in kinds and ViolationKind.REPEATS_DIFFER not in kinds
