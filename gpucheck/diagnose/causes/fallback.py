"""Calls that something else answers than the kernel under test, or that it answers otherwise than asked."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.causes.pages import FALLBACK, OTHER_CONFIGURATION
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.speeds import call_seconds, ceilings, peers
from gpucheck.diagnose.wording import lines_of, rank_list, took
from gpucheck.model.finding import Finding
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

SHOWN = {
    ViolationKind.FALLBACK: "kernel under test not launched",
    ViolationKind.LAUNCHES: "kernel under test launched less often than needed",
    ViolationKind.IDLE: "answer not made by the kernels launched",
}
"""What is said of each violation kind."""


def recognise(run: Run, record: Record) -> Evidence | None:
    """No launch of a kernel under test, too few, another configuration, or launches that the answer does not need."""
    kinds = [violation.kind for violation in record.violations]
    words = next((SHOWN[kind] for kind in kinds if kind in SHOWN), "")  # the kernel under test comes first
    if words:
        return Evidence(FALLBACK, words)
    return Evidence(OTHER_CONFIGURATION) if ViolationKind.CONFIGURATION in kinds and not record.mismatches else None


def findings(run: Run, evidence: Mapping[Key, Evidence]) -> list[Finding]:
    """As of any rule, with how much slower the calls are."""
    return common.findings(run, evidence, lambda record: [*lines_of(record), *_slowdown(run, record)])


def _slowdown(run: Run, record: Record) -> list[str]:
    """The time of a call against ranks that launched the kernel; else against what else is known of this GPU."""
    mine = call_seconds(record)
    if mine is None:
        return []
    others = peers(run, record)
    if others:
        typical = median(other.speed["call"] for other in others)
        who = rank_list(other.rank for other in others)
        return [f"{took(mine)} a call; with the kernel {took(typical)} on {who}: {mine / typical:.3g} times as long"]
    plain, best = call_seconds(record, "plain"), ceilings(run, record.rank)
    if plain is not None:
        return [f"{took(mine)} a call; plain torch takes {took(plain)}"]
    if record.cost is not None and best is not None:
        least = max(best.seconds(record.cost))
        return [f"{took(mine)} a call; the measured ceilings of this GPU allow {took(least)}"] if least else []
    return [f"{took(mine)} a call; --bench tells what plain torch and this GPU's ceilings make possible"]
