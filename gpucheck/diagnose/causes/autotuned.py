"""Kernels whose autotuner tries configurations on the tensors of a call."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.experiment_list import REPEAT
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

AUTOTUNED = Cause(
    "autotuned on live tensors",
    means="The first launch of an autotuned kernel runs each of its configurations on the tensors of the call. A "
    "kernel that adds in place then adds several times, and elements that the chosen configuration does not "
    "write come from another one, in that call only.",
    shows="The first call of a process gives other bits than all later ones, in every process.",
    confirm="The launches of the first call: one for each configuration and measurement. With one configuration "
    "the first call is like all others.",
    fix="Let each configuration write the same elements, and give triton.autotune the names of tensors that the "
    "kernel changes in place as restore_value or reset_to_zero; or tune before serving, on other tensors.",
)
CAUSES = (AUTOTUNED,)

FIRST = "wrong in the first call alone"


def recognise(run: Run, record: Record) -> Evidence | None:
    """The call that was tuned gave other bits than all after it, here and again in a fresh process.

    A configuration that writes less than others leaves memory as it was in every later call; one that works in place
    is applied several times in the first.
    """
    again = answers(run, record).processes(REPEAT)
    if not again or not all(map(_differs, (record, *again))):
        return None
    return Evidence(AUTOTUNED, FIRST if record.bad_calls == [0] else error_summary(record))


def _differs(record: Record) -> bool:
    kinds = {violation.kind for violation in record.violations}
    return ViolationKind.TUNING_DIFFERS in kinds and ViolationKind.REPEATS_DIFFER not in kinds
