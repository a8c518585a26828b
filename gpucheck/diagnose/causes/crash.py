"""Processes that died, and CUDA contexts that did."""

from __future__ import annotations

from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.failing_launch import place
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import lines_of
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

CRASH = Cause(
    "crash",
    means="The process that owns the device died, or a kernel destroyed its CUDA context, by an access to memory that "
    "is not allocated or a failed assertion. Every later CUDA call of that process fails; gpucheck continues "
    "with a fresh process.",
    shows="CR in the matrix, only on the case that did it. A GPU reports such an error at a later call, so the finding "
    "names the kernel only after a run that waits for each launch.",
    confirm="gpucheck run SCENARIO --case ID --debug; compute-sanitizer --tool memcheck names the instruction; the "
    "finding shows the driver's Xid message if its log can be read.",
    fix="Look at the masks and offsets of the named kernel; in a process that died in host code, at the log of "
    "its rank in the run folder's logs/.",
)
CAUSES = (CRASH,)

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
