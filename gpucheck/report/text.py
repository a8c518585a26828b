"""The report as lines of text with style names; the terminal colours them, everything else drops the styles."""

from __future__ import annotations

from collections.abc import Iterator

from gpucheck.diagnose.causes import described
from gpucheck.diagnose.words import rank_list
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome
from gpucheck.report import speed
from gpucheck.report.blocks import Cell, Report, heading
from gpucheck.report.visible import visible

MARKS = {
    Outcome.PASS: ("ok", "green"),
    Outcome.MISMATCH: ("XX", "bold red"),
    Outcome.VIOLATION: ("!!", "bold red"),
    Outcome.ERROR: ("ER", "bold red"),
    Outcome.CRASH: ("CR", "bold red"),
    Outcome.HANG: ("HG", "bold red"),
    Outcome.INAPPLICABLE: ("--", "dim"),
    Outcome.HARNESS: ("??", "yellow"),
    Outcome.LOST: ("LO", "yellow"),
}
EXPECTED = ("xf", "green")
MEANING = {
    "XX": "wrong output",
    "!!": "wrong conduct",
    "ER": "raised",
    "CR": "crashed",
    "HG": "hung",
    "--": "inapplicable",
    "??": "not judged",
    "LO": "lost",
    "xf": "failed as expected",
}
VERDICT_STYLES = {"PASS": "bold green", "FAIL": "bold red"}
SHOWN_CASES = 3  # of a finding, unless verbose

Line = list[tuple[str, str]]  # (text, style) pieces


def lines(report: Report, *, verbose: bool = False) -> Iterator[Line]:
    """The whole report: verdict, matrix, findings, notes, time. Nothing in it can move the cursor or change colours."""
    for line in _lines(report, verbose):
        yield [(visible(text), style) for text, style in line]


def _lines(report: Report, verbose: bool) -> Iterator[Line]:
    yield [(report.verdict, VERDICT_STYLES.get(report.verdict, "bold yellow")), (f"  {report.summary}", "")]
    yield [(" · ".join(report.headline), "dim")]
    yield []
    yield from _matrix(report)
    for number, finding in enumerate(report.findings, start=1):
        yield []
        yield from _finding(number, finding, None if verbose else SHOWN_CASES)
    yield from _speed(report)
    if report.notes:
        yield []
        yield from ([("note  ", "bold"), (note, "")] for note in report.notes)
    yield []
    if report.bounds and verbose:
        yield [("bound ", "bold"), (report.bounds, "")]
    yield from ([("time  ", "bold"), (line, "")] for line in report.timing)
    yield [("run   ", "bold"), (report.folder, "")]


def _matrix(report: Report) -> Iterator[Line]:
    width = max([len(name) for name, _, _ in report.rows] + [len("check")])
    column = max(2, len(str(max(report.ranks))))
    yield [(f"{'check':<{width}}  cases  ", "dim"), (" ".join(f"{rank:>{column}}" for rank in report.ranks), "dim")]
    for name, cases, cells in report.rows:
        line: Line = [(f"{name:<{width}}  {cases:>5}  ", "")]
        for cell in cells:
            shown, style = mark(cell)
            line += [(f"{shown:>{column}}", style), (" ", "")]
        yield line
    if meanings := legend(report):
        yield [("  ".join(meanings), "dim")]


def _speed(report: Report) -> Iterator[Line]:
    """The table of ``--bench``; a row is named at its first rank only."""
    table, previous = [list(speed.COLUMNS)], ""
    for pace in report.speed.paces:
        table.append(["" if pace.row == previous else pace.row, *speed.cells(pace)[1:]])
        previous = pace.row
    if len(table) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    yield []
    for number, (name, *others) in enumerate(table):
        shown = "  ".join(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        yield [(f"{name:<{widths[0]}}  {shown}", "" if number else "dim")]
    yield from ([(line, "dim")] for line in speed.legend(report.speed))


def legend(report: Report) -> list[str]:
    """The marks in the matrix that need words, with their words."""
    seen = dict.fromkeys(mark(cell)[0] for _, _, cells in report.rows for cell in cells)
    return [f"{shown} {MEANING[shown]}" for shown in seen if shown in MEANING]


def mark(cell: Cell) -> tuple[str, str]:
    """How a cell shows: two letters and the name of a style."""
    return MARKS[cell.worst] if cell.worst else EXPECTED


def _finding(number: int, finding: Finding, limit: int | None) -> Iterator[Line]:
    cases = len(finding.sightings)
    rows = ", ".join(finding.rows)
    counted = f"{rows} ({cases} case{'s' * (cases != 1)})" if rows else ""
    style = "bold red" if finding.fails else "yellow" if finding.warns else "bold yellow"
    yield [(f"{number}  {heading(finding)}", style), (f"   {rank_list(finding.ranks)}   {counted}", "bold")]
    shown = finding.sightings if limit is None else finding.sightings[:limit]
    previous: list[str] = []
    for sighting in shown:
        yield [("   case    ", "dim"), (sighting.case, "")]
        if sighting.lines != previous:
            yield from ([("           ", ""), (line, "")] for line in sighting.lines)
        previous = sighting.lines
        if sighting.replay:
            yield [("   replay  ", "dim"), (sighting.replay, "cyan")]
    if len(shown) < cases:
        yield [(f"   ... and {cases - len(shown)} more; -v shows all", "dim")]
    yield from ([("   tried   ", "dim"), (line, "")] for line in finding.evidence)
    yield from ([("   driver  ", "dim"), (line, "")] for line in finding.driver)
    if finding.remedy:
        yield [("   mend    ", "dim"), (finding.remedy, "")]
    if finding.cause:
        yield [("   explain ", "dim"), (f"gpucheck explain '{': '.join(described(finding.title))}'", "cyan")]


def plain(report: Report, *, verbose: bool = False) -> str:
    """The report without styles."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines(report, verbose=verbose))
