"""Cases that did not end."""

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

HANG = Cause(
    "hang",
    means="A case gave no result before its deadline.",
    shows="HG in the matrix; the record holds the Python stacks of the process from just before it was killed. The "
    "finding names the kernel if a launch never ended.",
    confirm="gpucheck run SCENARIO --case ID --case-timeout 600: a case that ends then is slow and does not hang.",
    fix="In a kernel, look at loops whose end depends on memory, and at waits for other blocks; in host code, at the "
    "place on top of the stack.",
)
CAUSES = (HANG,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """A hang, with the kernel where one can be named."""
    if record.outcome is not Outcome.HANG:
        return None
    kernel = place(run, record).kernel
    return Evidence(HANG, f"in {kernel}" if kernel else "", across=False)


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """As usual, with the place where a launch had to do with it."""
    return common.findings(run, evidence, lambda record: [*lines_of(record), *_place(run, record)])


def _place(run: Run, record: Record) -> list[str]:
    return [place(run, record).words] if record.underway is not None else []
