"""The report as Markdown with GitHub's tables: verdict, matrix, findings folded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape

from gpucheck.diagnose.words import rank_list
from gpucheck.model.finding import Finding
from gpucheck.report import speed
from gpucheck.report.blocks import Report, counted, heading
from gpucheck.report.text import SHOWN_CASES, legend, mark
from gpucheck.report.visible import one_line, visible

QUIET = ("ok", "--", "xf")  # marks that nobody needs to look at


def render(report: Report, limit: int | None = None) -> str:
    """The text of the file.

    Args:
        limit: bytes it may have at most; findings that do not fit are counted instead.
    """
    head = "\n".join(_head(report)) + "\n"
    tail = "\n" + "\n".join(_tail(report)) + "\n"
    room = None if limit is None else limit - len((head + tail).encode()) - 200  # for the words about what is left out
    findings: list[str] = []
    for number, finding in enumerate(report.findings, start=1):
        text = "\n" + "\n".join(_finding(number, finding, None if room is None else SHOWN_CASES)) + "\n"
        if room is not None:
            room -= len(text.encode())
            if room < 0:
                left = len(report.findings) - len(findings)
                findings.append(f"\n{counted(left, 'further finding')} left out here; `gpucheck report` shows all\n")
                break
        findings.append(text)
    speeds = "\n".join(_speed(report))
    if room is not None and len(speeds.encode()) > room:
        speeds = "\nThe table of speeds is left out here; `gpucheck report` shows it\n"
    return head + "".join(findings) + speeds + tail


def _head(report: Report) -> Iterator[str]:
    yield f"## {_text(report.verdict)}: {report.summary}"
    yield ""
    yield _text(" · ".join(report.headline))
    yield ""
    yield _row(["check", "cases", *(str(rank) for rank in report.ranks)])
    yield _row(["---", "---:", *(":---:" for _ in report.ranks)])
    for name, cases, cells in report.rows:
        marks = (mark(cell)[0] for cell in cells)
        yield _row([_text(name), str(cases), *(shown if shown in QUIET else f"**{shown}**" for shown in marks)])
    if meanings := legend(report):
        yield ""
        yield " · ".join(meanings)


def _finding(number: int, finding: Finding, limit: int | None) -> Iterator[str]:
    seen = finding.sightings
    rows = f"{', '.join(finding.rows)} ({counted(len(seen), 'case')})" if finding.rows else ""
    facts = [text for text in (rank_list(finding.ranks), rows) if text]
    yield "<details open>" if number == 1 else "<details>"
    yield f"<summary>{number} · <b>{_html(heading(finding))}</b> · {_html(' · '.join(facts))}</summary>"
    for sighting in seen[:limit]:
        yield ""
        yield f"{_code(sighting.case)}"
        if sighting.lines:
            yield ""
            yield from _fence(sighting.lines)
        if sighting.replay:
            yield ""
            yield "Replay:"
            yield ""
            yield from _fence([sighting.replay], "sh")
    if limit is not None and len(seen) > limit:
        yield ""
        yield f"... and {counted(len(seen) - limit, 'more case')}"
    for line in finding.evidence:
        yield ""
        yield f"Tried: {_text(line)}"
    for line in finding.driver:
        yield ""
        yield f"Driver: {_text(line)}"
    if finding.remedy:
        yield ""
        yield f"Mend: {_text(finding.remedy)}"
    if finding.cause:
        yield ""
        yield f"Explain: {_code(f'gpucheck explain {finding.cause!r}')}"
    yield ""
    yield "</details>"


def _speed(report: Report) -> Iterator[str]:
    """The table of ``--bench``, folded."""
    if not report.speed.paces:
        return
    yield ""
    yield "<details>"
    yield "<summary>Speed</summary>"
    yield ""
    yield _row(speed.COLUMNS)
    yield _row(["---", *("---:" for _ in speed.COLUMNS[1:])])
    for pace in report.speed.paces:
        yield _row(_text(cell) for cell in speed.cells(pace))
    yield ""
    yield from (f"- {_text(line)}" for line in speed.legend(report.speed))
    yield ""
    yield "</details>"
    yield ""


def _tail(report: Report) -> Iterator[str]:
    items = [("Note", note) for note in report.notes]
    items += [("Bound", report.bounds)] if report.bounds else []
    items += [("Time", line) for line in report.timing]
    for name, text in items:
        yield f"- {name}: {_text(text)}"
    yield f"- Run: {_code(report.folder)}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _html(text: str) -> str:
    return escape(one_line(text), quote=False)


def _text(text: str) -> str:
    """Text in which nothing is markup: neither Markdown nor HTML, nor the end of a table cell."""
    escaped = re.sub(r"([\\`*_\[\]~|$#@])", r"\\\1", _html(text))
    return re.sub(r"^(\s*\d*)([-+.)=])", r"\1\\\2", escaped)


def _code(text: str) -> str:
    """Text as a code span outside of tables, its own backticks included."""
    shown = one_line(text)
    ticks = "`" * (_longest_run(shown) + 1)
    padding = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{padding}{shown}{padding}{ticks}"


def _fence(lines: Iterable[str], language: str = "text") -> Iterator[str]:
    text = visible("\n".join(lines))
    ticks = "`" * max(3, _longest_run(text) + 1)
    yield ticks + language
    yield text
    yield ticks


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
