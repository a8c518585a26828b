"""The report as lines of text with style names; the terminal colours them, everything else drops the styles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpucheck.diagnose.causes import described
from gpucheck.diagnose.wording import counted, rank_list
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome
from gpucheck.report import screen_summary, timings
from gpucheck.report.blocks import Cell, Piece, Report, Sheet, Table, finding_lines, heading
from gpucheck.report.escape import visible

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
ACCEPTED = ("xa", "yellow")
WARNED = ("xw", "yellow")
MEANING = {
    "XX": "wrong output",
    "!!": "violation",
    "ER": "raised",
    "CR": "crashed",
    "HG": "hung",
    "--": "inapplicable",
    "??": "not judged",
    "LO": "lost",
    "xf": "failed as expected",
    "xa": "failed as accepted",
    "xw": "failed, and only warns",
}
VERDICT_STYLES = {"PASS": "bold green", "FAIL": "bold red"}
SHOWN_CASES = 3  # of a finding, unless verbose
DETAIL = "bound"  # label of what is shown where details are

Line = list[Piece]


def sheet(report: Report) -> Sheet:
    """What is shown of a run."""
    heads = ["check", "cases", *map(str, report.ranks)]
    rows = [[(name, ""), (str(cases), ""), *map(mark, cells)] for name, cases, cells in report.rows]
    paces = [[(cell, "") for cell in timings.cells(pace)] for pace in report.speed.paces]
    speeds = Table([_heads(timings.COLUMNS), *paces], timings.legend(report.speed), "Speed")
    bounds = [(report.bounds, DETAIL)] if report.bounds else []
    return Sheet(
        report.verdict,
        report.summary,
        report.headline,
        Table([_heads(heads), *rows], legend(report), between=" "),
        report.findings,
        [*([speeds] if paces else []), *_screen_tables(report)],
        [(note, "note") for note in report.notes],
        [*bounds, *((line, "time") for line in report.timing), (report.folder, "run")],
    )


def _screen_tables(report: Report) -> list[Table]:
    """What a screen ran, and what a longer one would see."""
    screen = report.screen
    if not screen.rows:
        return []
    rows = [[(cell, "") for cell in screen_summary.cells(row)] for row in screen_summary.merged(screen)]
    points = [[(cell, "") for cell in screen_summary.curve_cells(point)] for point in screen.curve]
    tables = [Table([_heads(screen_summary.COLUMNS), *rows], screen_summary.legend(screen), "Screen")]
    words = ["chance to see a fault that shows once in so many tiles, of the datapath with the fewest tiles"]
    return tables + [Table([_heads(screen_summary.curve_heads()), *points], words, "Power")] * bool(points)


def _heads(names: Iterable[str]) -> list[Piece]:
    return [(name, "dim") for name in names]


def lines(report: Report | Sheet, *, verbose: bool = False) -> Iterator[Line]:
    """The whole report: verdict, matrix, findings, notes, time. Nothing in it can move the cursor or change colours."""
    for line in _lines(sheet(report) if isinstance(report, Report) else report, verbose):
        yield [(visible(text), style) for text, style in line]


def _lines(shown: Sheet, verbose: bool) -> Iterator[Line]:
    yield [(shown.verdict, VERDICT_STYLES.get(shown.verdict, "bold yellow")), (f"  {shown.summary}", "")]
    yield [(" · ".join(shown.headline), "dim")]
    yield []
    yield from _table(shown.matrix)
    for number, finding in enumerate(shown.findings, start=1):
        yield []
        yield from _finding(number, finding, None if verbose else SHOWN_CASES)
    for table in shown.tables:
        yield []
        yield from _table(table)
    for notes in (shown.notes, shown.footer):
        if notes:
            yield []
        yield from ([(f"{label:<5} ", "bold"), (text, "")] for text, label in notes if verbose or label != DETAIL)


def _table(table: Table) -> Iterator[Line]:
    """The first column is set to the left, others to the right; the first name of a group stands for all its rows."""
    widths = [max(len(text) for text, _ in column) for column in zip(*table.rows, strict=True)]
    above = ""
    for row in table.rows:
        name, style = row[0]
        shown = "" if table.title and name == above else name
        line: Line = [(f"{shown:<{widths[0]}}", style)]
        for number, ((text, style), width) in enumerate(zip(row[1:], widths[1:], strict=True)):
            line += [(table.between if number > 1 else "  ", ""), (f"{text:>{width}}", style)]
        above = name
        yield line
    if table.legend and not table.title:
        yield [("  ".join(table.legend), "dim")]
    elif table.legend:
        yield from ([(line, "dim")] for line in table.legend)


def legend(report: Report) -> list[str]:
    """The marks in the matrix that need words, with their words."""
    seen = dict.fromkeys(mark(cell)[0] for _, _, cells in report.rows for cell in cells)
    return [f"{shown} {MEANING[shown]}" for shown in seen if shown in MEANING]


def mark(cell: Cell) -> tuple[str, str]:
    """How a cell shows: two letters and the name of a style."""
    if cell.worst in (None, Outcome.PASS, Outcome.INAPPLICABLE) and (cell.warned or cell.accepted):
        return WARNED if cell.warned else ACCEPTED
    return MARKS[cell.worst] if cell.worst else EXPECTED


def facts(finding: Finding) -> list[str]:
    """Where a finding was seen: ranks, rows and cases, as far as it has any."""
    rows = f"{', '.join(finding.rows)} ({counted(len(finding.cases), 'case')})"
    return [rank_list(finding.ranks)] * bool(finding.ranks) + [rows] * bool(finding.rows)


def _finding(number: int, finding: Finding, limit: int | None) -> Iterator[Line]:
    cases = len(finding.cases)
    style = "bold red" if finding.fails else "yellow" if finding.warns else "bold yellow"
    yield [(f"{number}  {heading(finding)}", style), ("".join(f"   {fact}" for fact in facts(finding)), "bold")]
    if finding.excuse:
        yield [(f"   {finding.excuse}", "yellow")]
    shown = finding.cases if limit is None else finding.cases[:limit]
    previous: list[str] = []
    for failed_case in shown:
        yield [("   case    ", "dim"), (failed_case.case, "")]
        if failed_case.lines != previous:
            yield from ([("           ", ""), (line, "")] for line in failed_case.lines)
        previous = failed_case.lines
        if failed_case.replay:
            yield [("   replay  ", "dim"), (failed_case.replay, "cyan")]
    if len(shown) < cases:
        yield [(f"   ... and {cases - len(shown)} more; -v shows all", "dim")]
    yield from ([(f"   {label:<7} ", "dim"), (text, "")] for text, label in finding_lines(finding))
    if finding.cause:
        yield [("   explain ", "dim"), (f"gpucheck explain '{': '.join(described(finding.title))}'", "cyan")]


def plain(report: Report | Sheet, *, verbose: bool = False) -> str:
    """The report without styles."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines(report, verbose=verbose))
