"""The findings of the page: what is wrong, where, on what evidence, and how to see it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gpucheck.diagnose.causes import described
from gpucheck.diagnose.wording import counted, rank_list
from gpucheck.model.finding import FailedCase, Finding
from gpucheck.model.record import Mismatch, Record
from gpucheck.report.blocks import Report, finding_lines, heading
from gpucheck.report.formats.html.figures import heat_figure
from gpucheck.report.formats.html.markup import Html, joined, tag

SHOWN_CASES = 1  # of a finding; the others are folded
SHOWN_MAPS = 2  # of a case; the others are folded
MOST_MAPS = 300  # on the page

Found = Mapping[int, Record]
"""Rank -> its record of one case."""


@dataclass
class Maps:
    """How many maps the page has."""

    drawn: int = 0
    refused: int = 0

    def fits(self) -> bool:
        """Whether there is room for one more, which is then counted."""
        room = self.drawn < MOST_MAPS
        self.drawn += room
        self.refused += not room
        return room


def findings(report: Report) -> Html:
    """All findings; empty where there are none."""
    records = {(result.label, result.record.rank): result.record for result in report.results}
    maps = Maps()
    articles = [_finding(number, finding, records, maps) for number, finding in enumerate(report.findings, start=1)]
    words = []
    if maps.drawn:
        key = tag("span", class_="shades", role="img", aria_label="to")
        words = [tag("p", "Maps of an output: elements wrong in a cell, none ", key, " all; lines part tiles.")]
    if maps.refused:
        words.append(tag("p", f"{counted(maps.refused, 'further map')} left out to keep the page small."))
    return joined([*([tag("div", *words, class_="words")] if words else []), *articles], "\n")


def _finding(number: int, finding: Finding, records: Mapping[tuple[str, int], Record], maps: Maps) -> Html:
    seen = finding.cases
    facts = [_ranks(finding.ranks), ", ".join(finding.rows), counted(len(seen), "case") if finding.rows else ""]
    parts = []
    for failed_case in seen:
        found = {rank: records[key] for rank in failed_case.ranks if (key := (failed_case.case, rank)) in records}
        parts.append(_failed_case(failed_case, found, maps))
    folded = parts[SHOWN_CASES:]
    more = [_folded(counted(len(folded), "more case"), joined(folded, "\n"))] if folded else []
    kind = "bad" if finding.fails else "warn"
    return tag(
        "article",
        tag("h3", tag("span", f"{number} ", class_="quiet"), heading(finding), class_=kind),
        tag("p", " · ".join(filter(None, facts)), class_="where"),
        *([tag("p", tag("b", finding.excuse))] if finding.excuse else []),
        *(tag("p", tag("b", label.capitalize()), " ", text) for text, label in finding_lines(finding)),
        *parts[:SHOWN_CASES],
        *more,
        *_causes(finding),
        id=f"finding-{number}",
    )


def _causes(finding: Finding) -> Iterator[Html]:
    for title, page in described(finding.title).items():
        listed = (item for part, text in page.parts.items() for item in (tag("dt", part), tag("dd", text)))
        yield _folded(f"About it: {title}", tag("dl", *listed))


def _failed_case(failed_case: FailedCase, found: Found, maps: Maps) -> Html:
    pictures = [_map(mismatch, ranks) for mismatch, ranks in _alike(found) if maps.fits()]
    folded = pictures[SHOWN_MAPS:]
    shown = pictures[:SHOWN_MAPS]
    if folded:
        shown.append(_folded(counted(len(folded), "more map"), tag("div", *folded, class_="maps")))
    evidence = [tag("ul", *(tag("li", line) for line in failed_case.lines))] if failed_case.lines else []
    evidence += [tag("div", *shown, class_="maps")] if shown else []
    return tag(
        "div",
        tag("h4", tag("code", failed_case.case), " ", tag("small", _ranks(failed_case.ranks))),
        tag("div", *evidence, class_="evidence"),
        *([tag("pre", tag("code", failed_case.replay), class_="command")] if failed_case.replay else []),
        *_tracebacks(found),
        class_="failed-case",
    )


def _alike(found: Found) -> list[tuple[Mismatch, list[int]]]:
    """The mismatches that have a map, with the ranks that share it."""
    groups: dict[str, tuple[Mismatch, list[int]]] = {}
    for rank, record in found.items():
        for mismatch in record.mismatches:
            if mismatch.heat:
                groups.setdefault(f"{mismatch.output} {mismatch.heat}", (mismatch, []))[1].append(rank)
    return list(groups.values())


def _map(mismatch: Mismatch, ranks: list[int]) -> Html:
    heat = mismatch.heat
    assert heat is not None
    share = f"{mismatch.output}, {rank_list(ranks)}: {mismatch.wrong / mismatch.total:.2%} wrong"
    extents = [f"{heat.shape[0]} × {heat.shape[1]}"]
    if any(heat.tile):
        tile = (str(size or "all") for size in heat.tile)
        extents.append(f"tile {' × '.join(tile)}")
    return tag(
        "figure",
        heat_figure(heat, f"{share}; {mismatch.region}"),
        tag("figcaption", share, tag("br"), "; ".join(extents)),
    )


def _tracebacks(found: Found) -> Iterator[Html]:
    """Tracebacks, each once for all ranks that share it."""
    groups: dict[str, list[int]] = {}
    for rank, record in found.items():
        if record.traceback:
            groups.setdefault(record.traceback.rstrip(), []).append(rank)
    for text, ranks in groups.items():
        yield _folded(f"Traceback, {rank_list(ranks)}", tag("pre", text))


def _ranks(ranks: list[int]) -> str:
    return rank_list(ranks) if ranks else ""


def _folded(title: str, content: Html) -> Html:
    return tag("details", tag("summary", title), content)
