"""Whether the library under test can be tried here at all: a search over versions skips those that cannot."""

from __future__ import annotations

import re

from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

IMPORTING = re.compile(r'File "[^"]*gpucheck/library/adapters/__init__\.py", line \d+, in load$', re.MULTILINE)
"""The frame that every exception passes through that the library raises while it is imported."""

NO_REASON = "no case applies"


def unbuildable(run: Run) -> str:
    """Why this library cannot be tried here, or "".

    It raised while it was imported, or nothing failed while a case that the scenario does not call optional is
    inapplicable, be it that the library does not import with this Triton.
    """
    records = [record for _, record in sorted(run.records.items())]
    raised = next((record for record in records if _raised_on_import(record)), None)
    if raised is not None:
        return f"the library cannot be imported: {raised.message}"
    if any(record.outcome.failed or record.outcome in (Outcome.LOST, Outcome.HARNESS) for record in records):
        return ""
    lacking = [
        record
        for record in records
        if record.outcome is Outcome.INAPPLICABLE and not run.plan.steps[record.step].optional
    ]
    if lacking:
        return lacking[0].message or NO_REASON
    if all(record.outcome is Outcome.INAPPLICABLE for record in records):
        return records[0].message if records and records[0].message else NO_REASON
    return ""


def _raised_on_import(record: Record) -> bool:
    return record.outcome is Outcome.ERROR and bool(IMPORTING.search(record.traceback))
