"""Calls that something else answers than the kernel under test, or that it answers otherwise than asked."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.speeds import call_seconds, ceilings, peers
from gpucheck.diagnose.wording import lines_of, rank_list, took
from gpucheck.model.finding import Finding
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

FALLBACK = Cause(
    "fallback",
    means="The call, or a part of it, was answered without the kernel under test, usually by plain torch code.",
    shows="Right numbers, and no launch of the kernel, fewer launches than the call needs (two for the products of "
    "an expert block, one for each layer and step of a decoding), or the same numbers when it does nothing.",
    confirm="The finding lists what was launched.",
    fix="Look for a swallowed import error or a capability check that turns the kernel off; log it loudly.",
)
OTHER_CONFIGURATION = Cause(
    "not the configuration asked for",
    means="The case asks for a configuration of the kernel (split-k, the persistent kernel, rows of a tile, parts "
    "of the epilogue, pipeline stages), and the library launched another one without saying that it cannot.",
    shows="Right numbers, but from other code than the case is there to test.",
    confirm="The finding names what was asked for and what was launched; each launch of a record has its "
    "configuration.",
    fix="Make the library take the constraint or raise InapplicableConstraint; look at who overwrites its "
    "options between the choice and the launch.",
)
CAUSES = (
    FALLBACK,
    OTHER_CONFIGURATION,
)

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
        typical = median(other.timings["call"] for other in others)
        who = rank_list(other.rank for other in others)
        return [f"{took(mine)} a call; with the kernel {took(typical)} on {who}: {mine / typical:.3g} times as long"]
    plain, best = call_seconds(record, "plain"), ceilings(run, record.rank)
    if plain is not None:
        return [f"{took(mine)} a call; plain torch takes {took(plain)}"]
    if record.cost is not None and best is not None:
        least = max(best.seconds(record.cost))
        return [f"{took(mine)} a call; the measured ceilings of this GPU allow {took(least)}"] if least else []
    return [f"{took(mine)} a call; --bench tells what plain torch and this GPU's ceilings make possible"]
