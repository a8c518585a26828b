"""The report for machines: verdict, findings, and one item for each case and rank."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

from gpucheck.records.run_folder import finite
from gpucheck.report.blocks import Cell, Report, Result

SCHEMA = 2  # rises when a key goes, or changes its type or meaning; keys may come at any time
EXPECTED, ACCEPTED, WARNED = "failed as expected", "failed as accepted", "failed and only warns"
"""Counted beside the outcomes."""
_NUMBERS = re.compile(r"\[\n\s*(-?\d+(?:,\n\s*-?\d+)*)\n\s*\]")  # no string holds a line break that is not escaped


def render(report: Report) -> str:
    """The text of a JSON file, as :func:`gpucheck.report.formats.json_schema.report_schema` describes it."""
    text = json.dumps(document(report), indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text) + "\n"


def document(report: Report) -> dict[str, Any]:
    """The plain form; a float that JSON cannot hold is the string "nan", "inf" or "-inf"."""
    plan = report.plan.to_json()
    item: dict[str, Any] = finite(
        {
            "schema": SCHEMA,
            "verdict": report.verdict,
            "gpus_checked": report.gpus_checked,
            "headline": report.headline,
            "ranks": report.ranks,
            "rows": [
                {"row": name, "cases": cases, "ranks": [counts(cell) for cell in cells]}
                for name, cases, cells in report.rows
            ],
            "findings": [asdict(finding) for finding in report.findings],
            "notes": report.notes,
            "bounds": report.bounds,
            "stages": report.stages,
            "timing": report.timing,
            "speed": asdict(report.speed),
            "seconds": report.seconds,
            "folder": report.folder,
            "plan": {key: value for key, value in plan.items() if key not in ("steps", "schema")},
            "places": [asdict(place) for place in report.places],
            "results": [_result(result) for result in report.results],
        }
    )
    return item


def counts(cell: Cell) -> dict[str, int]:
    """How many cases ended how; failures that do not count are no outcome."""
    further = {EXPECTED: cell.expected, ACCEPTED: cell.accepted, WARNED: cell.warned}
    return {**cell.counts, **{name: count for name, count in further.items() if count}}


def _result(result: Result) -> dict[str, Any]:
    record = result.record
    return {
        "case": record.case,
        "row": result.row,
        "conditions": result.conditions.to_json(),
        "rank": record.rank,
        "outcome": record.outcome.value,
        "expected": result.expected,
        "accepted": result.accepted,
        "warned": result.warned,
        "message": record.message,
        "mismatches": [asdict(mismatch) for mismatch in record.mismatches],
        "violations": [asdict(violation) for violation in record.violations],
        "wrong": record.wrong,
        "repeats": record.repeats,
        "passes": result.tally.runs,
        "failed_passes": result.tally.failed,
        "tightness": record.tightness,
        "arithmetic": record.arithmetic,
        "bounds": record.bounds,
        "timings": record.timings,
        "cost": asdict(record.cost) if record.cost else None,
        "engine": asdict(record.engine) if record.engine else None,
        "twins": record.twins,
        "seconds": record.seconds,
        "traceback": record.traceback,
        "printed": record.said,
        "log": record.log,
    }
