"""Processes that died, and CUDA contexts that did."""

from __future__ import annotations

from gpucheck.diagnose.causes import CRASH
from gpucheck.diagnose.place import place
from gpucheck.diagnose.rules import common
from gpucheck.diagnose.rules.common import Evidence
from gpucheck.diagnose.sightings import Key
from gpucheck.diagnose.words import lines_of
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.folder import Run

STICKY = (
    "illegal memory access",
    "device-side assert",
    "misaligned address",
    "illegal instruction",
    "unspecified launch failure",
    "uncorrectable ECC error",
    "hardware stack error",
)
"""What CUDA calls the errors that no context survives."""


def recognise(run: Run, record: Record) -> Evidence | None:
    """A crash that no experiment explains, with the kernel where one can be named."""
    if record.outcome is not Outcome.CRASH:
        return None
    if not record.sticky:
        return Evidence(CRASH, across=False)
    kind = next((kind for kind in STICKY if kind in record.message), "CUDA context lost")
    kernel = place(run, record).kernel
    return Evidence(CRASH, kind + (f" in {kernel}" if kernel else ""), across=False)


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """As usual, with the place."""
    return common.findings(run, evidence, lambda record: [*lines_of(record), *_place(run, record)])


def _place(run: Run, record: Record) -> list[str]:
    words = place(run, record).words
    return [words] if words else []
