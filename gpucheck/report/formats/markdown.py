"""The report as Markdown with GitHub's tables: verdict, matrix, findings folded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape

from gpucheck.diagnose.wording import counted
from gpucheck.model.finding import Finding
from gpucheck.report.blocks import Report, Sheet, Table, finding_lines, heading
from gpucheck.report.escape import one_line, visible
from gpucheck.report.formats.text import SHOWN_CASES, facts, sheet

QUIET = ("", "dim", "green")  # styles of what nobody needs to look at


def render(report: Report | Sheet, limit: int | None = None) -> str:
    """The text of the file.

    Args:
        limit: bytes it may have at most; findings that do not fit are counted instead.
    """
    report = sheet(report) if isinstance(report, Report) else report
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
    tables = ""
    for table in report.tables:
        text = "\n".join(_folded(table))
        if room is not None and len((tables + text).encode()) > room:
            text = f'\nThe table "{table.title}" is left out here; `gpucheck report` shows it\n'
        tables += text
    return head + "".join(findings) + tables + tail


def _head(report: Sheet) -> Iterator[str]:
    yield f"## {_text(report.verdict)}: {report.summary}"
    yield ""
    yield _text(" · ".join(report.headline))
    yield ""
    yield from _table(report.matrix, ":---:")
    if report.matrix.legend:
        yield ""
        yield " · ".join(report.matrix.legend)


def _table(table: Table, align: str) -> Iterator[str]:
    heads, *rows = table.rows
    yield _row(_text(text) for text, _ in heads)
    yield _row(["---", "---:", *(align for _ in heads[2:])])
    for row in rows:
        yield _row(_text(text) if style in QUIET else f"**{_text(text)}**" for text, style in row)


def _finding(number: int, finding: Finding, limit: int | None) -> Iterator[str]:
    seen = finding.cases
    yield "<details open>" if number == 1 else "<details>"
    yield f"<summary>{number} · <b>{_html(heading(finding))}</b> · {_html(' · '.join(facts(finding)))}</summary>"
    if finding.excuse:
        yield ""
        yield _text(finding.excuse[:1].upper() + finding.excuse[1:])
    for failed_case in seen[:limit]:
        yield ""
        yield f"{_code(failed_case.case)}"
        if failed_case.lines:
            yield ""
            yield from _fence(failed_case.lines)
        if failed_case.replay:
            yield ""
            yield "Replay:"
            yield ""
            yield from _fence([failed_case.replay], "sh")
    if limit is not None and len(seen) > limit:
        yield ""
        yield f"... and {counted(len(seen) - limit, 'more case')}"
    for text, label in finding_lines(finding):
        yield ""
        yield f"{label.capitalize()}: {_text(text)}"
    if finding.cause:
        yield ""
        yield f"Explain: {_code(f'gpucheck explain {finding.cause!r}')}"
    yield ""
    yield "</details>"


def _folded(table: Table) -> Iterator[str]:
    """A table with a title."""
    yield ""
    yield "<details>"
    yield f"<summary>{_html(table.title)}</summary>"
    yield ""
    yield from _table(table, "---:")
    yield ""
    yield from (f"- {_text(line)}" for line in table.legend)
    yield ""
    yield "</details>"
    yield ""


def _tail(report: Sheet) -> Iterator[str]:
    for text, label in (*report.notes, *report.footer):
        yield f"- {label.capitalize()}: {_code(text) if label == 'run' else _text(text)}"


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
