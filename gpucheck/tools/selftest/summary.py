"""What the self-test found, as text and for machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from gpucheck.diagnose.wording import counted
from gpucheck.tools.selftest.assess import Cell
from gpucheck.tools.selftest.planted_runs import Summary

SCHEMA = 1
MISSED, WRONG, RIGHT, NOT_PLANTED = "no", "??", "ok", "."
LEGEND = "ok detected and rightly attributed  ?? detected, wrongly attributed  no missed  . not planted there"
SHARES = "of each run what its slowest rank was at, and in brackets how often all ranks did that"
MOST_LINES = 20  # of problems, and of false alarms


def lines(summary: Summary) -> Iterator[str]:
    """Verdict, matrix, figures, and everything that is wrong."""
    yield ("PASS" if summary.right else "INCOMPLETE" if not summary.complete else "FAIL") + "  self-test"
    ranks = f"{counted(summary.ranks, 'rank')} on {'GPUs' if summary.device == 'cuda' else 'the CPU'}"
    yield f"{ranks} · triton_kernels {summary.library} · {len(summary.done)} of {summary.planned} runs"
    yield ""
    yield from _matrix(summary)
    yield ""
    yield from figures(summary)
    for title, found in (("wrong", summary.problems), ("false alarm", summary.alarms)):
        yield from (f"{title}: {line}" for line in found[:MOST_LINES])
        if len(found) > MOST_LINES:
            yield f"{title}: and {len(found) - MOST_LINES} more"
    if summary.inapplicable:
        yield ""
        by_reason: dict[str, list[str]] = {}
        for fault, reason in summary.inapplicable.items():
            by_reason.setdefault(reason, []).append(fault)
        yield from (f"inapplicable: {', '.join(faults)}: {reason}" for reason, faults in by_reason.items())
    yield ""
    yield f"time  {summary.seconds:.0f} s, {counted(summary.at_once, 'run')} at a time; {SHARES}"
    yield from (f"time  {done.run.name}: {done.seconds:.0f} s = {done.effort.words}" for done in summary.done)
    yield from (f"time  {name}: cut short, {effort.words}" for name, effort in summary.cut_short.items())
    yield f"runs  {summary.folder}"


def figures(summary: Summary) -> Iterator[str]:
    """How good the detector is, by what was planted."""
    cells = summary.cells
    detected, right = sum(cell.detected for cell in cells), sum(cell.right for cell in cells)
    yield f"detection     {_share(detected, len(cells))} planted faults"
    yield f"attribution   {_share(right, len(cells))} with the right outcome, ranks, case, region, cause and exit code"
    yield f"false alarms  {len(summary.alarms)} in {summary.clean} cases without a fault"


def to_json(summary: Summary) -> dict[str, Any]:
    """The same for machines."""
    cells = summary.cells
    return {
        "schema": SCHEMA,
        "passed": summary.right,
        "device": summary.device,
        "ranks": summary.ranks,
        "library": summary.library,
        "cells": [{**asdict(cell), "right": cell.right} for cell in cells],
        "inapplicable": summary.inapplicable,
        "planted": len(cells),
        "detected": sum(cell.detected for cell in cells),
        "attributed": sum(cell.right for cell in cells),
        "clean": summary.clean,
        "false_alarms": summary.alarms,
        "problems": summary.problems,
        "runs": [{"name": d.run.name, "seconds": d.seconds, "effort": asdict(d.effort)} for d in summary.done],
        "cut_short": {name: asdict(effort) for name, effort in summary.cut_short.items()},
        "at_once": summary.at_once,
        "seconds": summary.seconds,
        "folder": summary.folder,
    }


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "0 of 0"


def _matrix(summary: Summary) -> Iterator[str]:
    cells: dict[str, dict[str, Cell]] = {}
    for cell in summary.cells:
        cells.setdefault(cell.fault, {})[cell.column] = cell
    columns = [*(str(rank) for rank in range(summary.ranks)), "all"]
    width = max([len(fault) for fault in cells] + [len("fault")])
    yield f"{'fault':<{width}}  " + " ".join(f"{column:>3}" for column in columns)
    for fault in summary.faults:
        if fault in cells:
            marks = (_mark(cells[fault].get(column)) for column in columns)
            yield f"{fault:<{width}}  " + " ".join(f"{mark:>3}" for mark in marks)
    yield LEGEND


def _mark(cell: Cell | None) -> str:
    if cell is None:
        return NOT_PLANTED
    return RIGHT if cell.right else WRONG if cell.detected else MISSED
