"""Cases that did not end."""

from __future__ import annotations

from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.causes.pages import HANG
from gpucheck.diagnose.failing_launch import place
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.wording import lines_of
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run


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
