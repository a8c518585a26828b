"""The report for machines: verdict, findings, and one item for each case and rank."""

from __future__ import annotations

import json
import re
from typing import Any

from gpucheck.records.run_folder import finite
from gpucheck.report.blocks import Cell, Report, Result

SCHEMA = 2  # rises when a key goes, or changes its type or meaning; keys may come at any time
EXPECTED, ACCEPTED, WARNED = "failed as expected", "failed as accepted", "failed and only warns"
"""Counted beside the outcomes."""
OF_RESULT = ("row", "expected", "accepted", "warned")
OF_RECORD = (
    *("case", "rank", "outcome", "message", "traceback", "log", "mismatches", "violations", "wrong", "repeats"),
    *("tightness", "arithmetic", "bounds", "timings", "cost", "seconds", "engine", "twins"),
    *("precision", "rules", "memory", "gpu", "walls", "transfers", "progress", "victim_of", "screened"),
)
"""Fields that an item of the results has from :class:`Result` and from its record."""
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
            "findings": report.findings,
            "notes": report.notes,
            "bounds": report.bounds,
            "stages": report.stages,
            "timing": report.timing,
            "speed": report.speed,
            "screen": report.screen,
            "seconds": report.seconds,
            "folder": report.folder,
            "plan": {key: value for key, value in plan.items() if key not in ("steps", "schema")},
            "places": report.places,
            "results": [_result(result) for result in report.results],
        }
    )
    return item


def counts(cell: Cell) -> dict[str, int]:
    """How many cases ended how; failures that do not count are no outcome."""
    further = {EXPECTED: cell.expected, ACCEPTED: cell.accepted, WARNED: cell.warned}
    return {**cell.counts, **{name: count for name, count in further.items() if count}}


def _result(result: Result) -> dict[str, Any]:
    return {
        "conditions": result.conditions,
        **{name: getattr(result, name) for name in OF_RESULT},
        **{name: getattr(result.record, name) for name in OF_RECORD},
        "passes": result.tally.runs,
        "failed_passes": result.tally.failed,
        "printed": result.record.said,
    }
