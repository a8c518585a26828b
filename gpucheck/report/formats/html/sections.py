"""The parts of the page but its findings: verdict, matrix, errors against bounds, times, cases, environment."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from gpucheck.diagnose.wording import counted
from gpucheck.model.record import Outcome
from gpucheck.report import screen_summary, timings
from gpucheck.report.blocks import Report, Result
from gpucheck.report.formats.html.figures import error_to_bound, power_curve, scale, strip
from gpucheck.report.formats.html.markup import Html, joined, tag
from gpucheck.report.formats.json import counts
from gpucheck.report.formats.text import ACCEPTED, EXPECTED, MARKS, MEANING, WARNED, legend, mark

JUDGED = (Outcome.PASS, Outcome.MISMATCH, Outcome.VIOLATION)
MOST_MARKS = 6000  # in the table of cases; beyond, it lists only those that did not pass everywhere
SHORTEST = 0.005  # s; a stage below that on every rank has no column
MANY_RANKS = 24  # from there on the matrix is wider than most screens
_CLASSES = {"green": "good", "bold red": "bad", "yellow": "warn", "dim": "quiet"}

Links = dict[tuple[str, int], int]
"""Row or case, and rank -> number of the finding that tells of it."""


def head(report: Report) -> Html:
    """The verdict and the facts of the run."""
    kind = {"PASS": "good", "FAIL": "bad"}.get(report.verdict, "warn")
    return tag(
        "header",
        tag("h1", tag("span", report.verdict, class_=kind), " ", tag("small", report.summary)),
        tag("p", joined((tag("span", fact) for fact in report.headline), " · "), class_="facts"),
    )


def matrix(report: Report) -> Html:
    """Checks against ranks: a bad GPU shows as a column, a bad kernel as a row; marks lead to their findings."""
    links = _links(report, {result.label: result.row for result in report.results})
    rows = []
    for name, cases, cells in report.rows:
        marks = []
        for rank, cell in zip(report.ranks, cells, strict=True):
            shown, style = mark(cell)
            words = ", ".join(f"{count} {outcome}" for outcome, count in counts(cell).items())
            marks.append(_mark(shown, style, f"rank {rank}: {words}", links.get((name, rank))))
        rows.append(tag("tr", tag("th", name, scope="row"), tag("td", str(cases), class_="cases"), *marks))
    failing = Counter(result.record.rank for result in report.results if result.failing)
    totals = (tag("td", str(failing[rank] or "·"), class_="bad" if failing[rank] else "quiet") for rank in report.ranks)
    table = tag(
        "table",
        tag("thead", *_hosts(report), tag("tr", _column("check"), _column("cases", "cases"), *_ranks(report))),
        tag("tbody", joined(rows, "\n")),
        tag("tfoot", tag("tr", tag("th", "failing cases", scope="row"), tag("td", class_="cases"), *totals)),
        class_="matrix many" if len(report.ranks) > MANY_RANKS else "matrix",
    )
    notes = (tag("p", tag("b", "Note"), " ", note, class_="note") for note in report.notes)
    key = tag("p", *(tag("span", words) for words in legend(report)), class_="legend")
    return joined([*_worst_ranks(report, failing), _scrolling(table, "Matrix of checks and ranks"), key, *notes])


def _worst_ranks(report: Report, failing: Counter[int]) -> list[Html]:
    """The ranks with failures in words, where the matrix is too wide to be seen at once."""
    worst = [f"rank {rank} ({count})" for rank, count in failing.most_common(MANY_RANKS) if count]
    if not worst or len(report.ranks) <= MANY_RANKS:
        return []
    return [tag("p", tag("b", "Failing cases"), f" {', '.join(worst)}", ", ..." * (len(+failing) > len(worst)))]


def bounds(report: Report) -> Html:
    """How far each rank's errors lie from what is allowed; empty where nothing was judged."""
    judged = [result for result in report.results if result.record.outcome in JUDGED and not result.expected]
    rows = []
    for rank, results in groupby(sorted(judged, key=lambda result: result.record.rank), lambda r: r.record.rank):
        right: list[float] = []
        wrong: list[float] = []
        for result in results:
            (wrong if result.record.mismatches else right).append(error_to_bound(result.record))
        most = f"{max(right):.0%}" if right else "–"
        label = (
            f"rank {rank}: right outputs used at most {most} of their bound, {counted(len(wrong), 'case')} beyond it"
        )
        cells = [tag("td", strip(right, wrong, label)), tag("td", most), _count(len(wrong))]
        rows.append(tag("tr", tag("th", str(rank), scope="row"), *cells))
    if not rows:
        return Html()
    columns = [_column("rank"), tag("th", scale(), scope="col"), _column("largest right"), _column("wrong")]
    words = (
        "One line a case: the largest error of a right output beyond its final rounding, or the worst error of a wrong "
        "one, over what is allowed there. 0: no error; ∞: an error where none is allowed, or NaN."
    )
    table = tag("table", tag("thead", tag("tr", *columns)), tag("tbody", *rows), class_="bounds")
    return joined([tag("p", words, class_="words"), _scrolling(table, "Errors against bounds")])


def times(report: Report) -> Html:
    """Seconds of each rank in each stage, as numbers and bars; empty where none was measured."""
    spent = {place.rank: {"import": place.import_seconds, **place.seconds} for place in report.places}
    known = dict.fromkeys(name for of in spent.values() for name in of)
    stages = [name for name in known if any(of.get(name, 0.0) >= SHORTEST for of in spent.values())]
    if not stages:
        return Html()
    longest = max(seconds for of in spent.values() for seconds in of.values())
    rows = []
    for rank, of in spent.items():
        bars = (_bar(of.get(name, 0.0), longest) for name in stages)
        total = tag("td", f"{sum(of.values()):.2f}")
        rows.append(tag("tr", tag("th", str(rank), scope="row"), *bars, total))
    columns = [_column("rank"), *(_column(name) for name in stages), _column("sum")]
    table = tag("table", tag("thead", tag("tr", *columns)), tag("tbody", joined(rows, "\n")), class_="times")
    words = (tag("p", line, class_="words") for line in report.timing)
    return joined([*words, _scrolling(table, "Seconds by rank and stage")])


def speeds(report: Report) -> Html:
    """The table of ``--bench``; empty without it."""
    if not report.speed.paces:
        return Html()
    table = _plain_table(timings.COLUMNS, map(timings.cells, report.speed.paces))
    words = (tag("p", line, class_="words") for line in timings.legend(report.speed))
    return joined([*words, _scrolling(table, "Speed by check and rank")])


def screen(report: Report) -> Html:
    """What a screen ran on each GPU, and what screens of other lengths would see; empty where there was none."""
    summary = report.screen
    if not summary.rows:
        return Html()
    words = (tag("p", line, class_="words") for line in [*summary.statements, *screen_summary.legend(summary)])
    ran = _plain_table(screen_summary.COLUMNS, map(screen_summary.cells, summary.rows))
    parts = [*words, _scrolling(ran, "Datapaths by GPU")]
    if summary.curve:
        seen = _plain_table(screen_summary.curve_heads(), map(screen_summary.curve_cells, summary.curve))
        parts += [power_curve(summary.curve), _scrolling(seen, "Power by seconds")]
    return joined(parts)


def _plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table whose rows are named by their first cell."""
    body = (tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in others)) for name, *others in rows)
    return tag("table", tag("thead", tag("tr", *map(_column, heads))), tag("tbody", joined(body, "\n")))


def cases(report: Report) -> Html:
    """Every case on every rank, folded."""
    of_case: dict[str, list[Result]] = {}
    for result in report.results:
        of_case.setdefault(result.label, []).append(result)
    whole = len(report.results) <= MOST_MARKS
    chosen = {
        label: results
        for label, results in of_case.items()
        if whole or any(result.record.outcome is not Outcome.PASS for result in results)
    }
    if not chosen:
        return Html()
    links = _links(report, {label: label for label in chosen})
    rows = []
    for label, results in chosen.items():
        seconds = max(result.seconds for result in results)
        marks = (_result(result, links.get((label, result.record.rank))) for result in results)
        rows.append(
            tag("tr", tag("th", tag("code", label), scope="row"), tag("td", f"{seconds:.2f}", class_="cases"), *marks)
        )
    columns = [_column("case"), _column("s", "cases"), *_ranks(report)]
    table = tag("table", tag("thead", tag("tr", *columns)), tag("tbody", joined(rows, "\n")), class_="matrix")
    title = f"All {counted(len(chosen), 'case')}" if whole else f"{counted(len(chosen), 'case')} not passed everywhere"
    return tag("details", tag("summary", title), _scrolling(table, "Cases and ranks"))


def environment(report: Report) -> Html:
    """What ran where, and the command that makes the run again."""
    plan = report.plan
    created = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(plan.created))
    limits = f"{plan.timeout:g} s for the run, {plan.case_timeout:g} s for a case"
    facts = {"scenario": f"{plan.scenario}: {plan.title}", "started": created, "limits": limits}
    facts |= {"command": shlex.join(plan.command), "folder": report.folder}
    facts |= {f"library {key}": _fact_text(value) for key, value in plan.library.items() if value}
    for key, value in plan.environment.items():
        facts |= (
            {name: _fact_text(of) for name, of in value.items()}
            if isinstance(value, dict)
            else {key: _fact_text(value)}
        )
    listed = (item for key, value in facts.items() for item in (tag("dt", key), tag("dd", value)))
    rows = (
        tag("tr", tag("th", str(place.rank), scope="row"), tag("td", place.host or "–"), tag("td", place.device or "–"))
        for place in report.places
    )
    columns = tag("tr", _column("rank"), _column("host"), _column("device"))
    table = tag("table", tag("thead", columns), tag("tbody", *rows), class_="places")
    return joined([tag("dl", *listed), _scrolling(table, "Ranks, hosts and devices")])


def _links(report: Report, names: dict[str, str]) -> Links:
    """Where marks lead: the first finding that names a case; ``names`` says what a case is listed as."""
    links: Links = {}
    for number, finding in enumerate(report.findings, start=1):
        for failed_case in finding.cases:
            for rank in failed_case.ranks if failed_case.case in names else ():
                links.setdefault((names[failed_case.case], rank), number)
    return links


def _result(result: Result, number: int | None) -> Html:
    known = EXPECTED if result.expected else ACCEPTED if result.accepted else WARNED if result.warned else None
    shown, style = known or MARKS[result.record.outcome]
    words = MEANING.get(shown, "passed") + (f": {result.record.message}" if result.record.message else "")
    return _mark(shown, style, f"rank {result.record.rank}: {words}", number)


def _mark(shown: str, style: str, words: str, number: int | None) -> Html:
    content = tag("a", shown, href=f"#finding-{number}", title=words) if number else shown
    return tag("td", content, class_=_CLASSES[style], title=None if number else words)


def _hosts(report: Report) -> list[Html]:
    """A line over the ranks that names their hosts, where there are several."""
    spans = [(host, len(list(group))) for host, group in groupby(report.places, lambda place: place.host)]
    if len(spans) < 2:
        return []
    cells = (
        tag("th", host or "–", colspan=width, scope="colgroup", class_="host", title=host) for host, width in spans
    )
    return [tag("tr", tag("td"), tag("td", class_="cases"), *cells)]


def _ranks(report: Report) -> list[Html]:
    facts = (" ".join(filter(None, (place.device, place.host and f"on {place.host}"))) for place in report.places)
    return [
        tag("th", str(rank), scope="col", title=fact or None) for rank, fact in zip(report.ranks, facts, strict=True)
    ]


def _column(title: str, kind: str | None = None) -> Html:
    return tag("th", title, scope="col", class_=kind)


def _count(count: int) -> Html:
    return tag("td", str(count or "·"), class_="bad" if count else "quiet")


def _bar(seconds: float, longest: float) -> Html:
    return tag("td", f"{seconds:.2f}", style=f"--part:{seconds / longest:.1%}")


def _fact_text(value: Any) -> str:
    """A fact of the environment, version first."""
    if isinstance(value, dict):
        value = [part for _, part in sorted(value.items(), key=lambda item: item[0] != "version")]
    if isinstance(value, list):
        return ", ".join(map(_fact_text, value))
    return "not installed" if value is None else str(value)


def _scrolling(content: Html, label: str) -> Html:
    """Content that may be wider than the screen: it scrolls by itself, also by keyboard."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)
