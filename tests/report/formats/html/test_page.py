from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Heat, Outcome
from gpucheck.records.run_folder import Run
from gpucheck.report import blocks
from gpucheck.report.blocks import Report
from gpucheck.report.escape import visible
from gpucheck.report.formats.html import render
from gpucheck.report.formats.html.findings import MOST_MAPS
from gpucheck.report.formats.text import MARKS, legend, mark
from tests.conftest import Synthetic

EMPTY = ("meta", "link", "br")


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def every(self, tag: str = "", class_: str = "") -> Iterator[Node]:
        for child in self.children:
            if isinstance(child, Node):
                if tag in ("", child.tag) and (not class_ or class_ in (child.attributes.get("class") or "").split()):
                    yield child
                yield from child.every(tag, class_)

    def one(self, tag: str = "", class_: str = "") -> Node:
        return next(self.every(tag, class_))

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Reader(HTMLParser):
    """Reads a page and fails on elements that are not closed in the order they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"{tag} has an attribute twice"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in EMPTY:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(text: str) -> Node:
    reader = Reader()
    reader.feed(text)
    reader.close()
    (root,) = reader.open
    return root


def page_of(run: Run) -> Node:
    return read(render(blocks.build(run, conclude(run))))


@pytest.fixture(scope="module")
def page(busy: Report) -> Node:
    return read(render(busy))


def test_the_verdict_comes_first(page: Node, busy: Report) -> None:
    body = page.one("body")
    assert body.one("h1").text == "FAIL 7 findings, 3 open questions" and page.one("title").text == "FAIL: gate"
    assert body.text.lstrip().startswith("FAIL 7 findings") and " · ".join(busy.headline) in body.one("header").text


def test_the_matrix_shows_what_the_terminal_shows(page: Node, busy: Report) -> None:
    table = page.one("table", "matrix")
    rows = list(table.one("tbody").every("tr"))
    shown = [([cell.text for cell in row.every("th")] + [cell.text for cell in row.every("td")]) for row in rows]
    assert shown == [[name, str(cases), *(mark(cell)[0] for cell in cells)] for name, cases, cells in busy.rows]
    assert [cell.text for cell in table.one("tfoot").every("td")][1:] == ["5", "6", "6", "7", "6", "30", "5", "5"]
    hosts = list(table.every("th", "host"))
    assert [(cell.text, cell.attributes["colspan"]) for cell in hosts] == [("node-0", "4"), ("node-1", "4")]
    assert [span.text for span in page.one("p", "legend").every("span")] == legend(busy)


def test_bad_cells_lead_to_the_finding_that_tells_of_them(page: Node, busy: Report) -> None:
    for row, (name, _, cells) in zip(page.one("table", "matrix").one("tbody").every("tr"), busy.rows, strict=True):
        for rank, (shown, cell) in enumerate(zip(list(row.every("td"))[1:], cells, strict=True)):
            links = list(shown.every("a"))
            bad = any(count for outcome, count in cell.counts.items() if outcome not in ("pass", "inapplicable"))
            assert bool(links) >= bad
            if bad:
                number = int((links[0].attributes["href"] or "").removeprefix("#finding-"))
                finding = busy.findings[number - 1]
                labels = {s.case for s in finding.cases if rank in s.ranks}
                assert labels & {result.label for result in busy.results if result.row == name}


def test_every_finding_is_there_with_evidence_and_command(page: Node, busy: Report) -> None:
    articles = list(page.every("article"))
    assert len(articles) == len(busy.findings)
    for number, (article, finding) in enumerate(zip(articles, busy.findings, strict=True), start=1):
        assert article.attributes["id"] == f"finding-{number}" and article.one("h3").text == f"{number} {finding.title}"
        text = article.text
        for failed_case in finding.cases:
            assert all(line in text for line in (failed_case.case, *failed_case.lines))
        commands = [node.text for node in article.every("pre", "command")]
        assert commands == [failed_case.replay for failed_case in finding.cases if failed_case.replay]
        assert finding.fix in text


def test_failures_have_maps_and_ranks_that_share_one_share_it(page: Node, busy: Report) -> None:
    articles = {article.one("h3").text: article for article in page.every("article")}
    product, prefill = articles["4 undetermined: wrong output"], articles["3 kernel bug: wrong output"]
    captions = [figure.one("figcaption").text for figure in product.every("figure")]
    assert captions == ["y, rank 5: 0.28% wrong1024 × 5760; tile 128 × 128"] * 25
    assert len(list(prefill.every("figure"))) == 40  # 5 cases, 8 ranks, all different
    label = product.one("svg", "heat").attributes["aria-label"]
    assert label == "y, rank 5: 0.28% wrong; rows 128-255 of 1024, columns 0-127 of 5760, tile (1, 0) of 360"


def test_a_map_that_all_ranks_share_is_drawn_once(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=3)
    mismatch = synthetic.mismatch(heat=Heat([2, 2], [1, 1], [0, 0], 2, [[0, 0], [1000, 0]]))
    records = {
        (0, rank): synthetic.record(plan, 0, rank, Outcome.MISMATCH, mismatches=[mismatch]) for rank in (0, 1, 2)
    }
    found = page_of(synthetic.run(plan, records))
    assert [figure.one("figcaption").text for figure in found.every("figure")] == ["y, ranks 0-2: 25.00% wrong2 × 2"]


def test_records_without_a_map_are_told_in_words(synthetic: Synthetic) -> None:
    found = page_of(synthetic.run(synthetic.plan(cases=1), {(0, 0): Outcome.MISMATCH}))
    assert not list(found.every("figure")) and "y: row 1 of 2" in found.one("article").text


def test_errors_against_bounds_by_rank(page: Node) -> None:
    rows = list(page.one("table", "bounds").one("tbody").every("tr"))
    assert [row.one("th").text for row in rows] == [str(rank) for rank in range(8)]
    assert [list(row.every("td"))[2].text for row in rows] == ["5", "5", "5", "6", "5", "30", "5", "5"]
    assert all(row.one("svg", "strip").attributes["aria-label"] for row in rows)


def test_times_by_rank_and_stage(page: Node, busy: Report) -> None:
    table = page.one("table", "times")
    stages = [cell.text for cell in table.one("thead").every("th")]
    assert stages == ["rank", "import", "inputs", "child", "compile", "launch", "reference", "judge", "sum"]
    first = [cell.text for cell in next(table.one("tbody").every("tr")).every("td")]
    assert first[0] == "1.00" and first[3] == f"{busy.places[0].seconds['compile']:.2f}"
    assert float(first[-1]) == pytest.approx(sum(map(float, first[:-1])), abs=0.05)


def test_all_cases_are_listed(page: Node, busy: Report) -> None:
    rows = list(list(page.every("table", "matrix"))[1].one("tbody").every("tr"))
    shown = [row.one("th").text for row in rows]
    assert shown == [step.label for step in busy.plan.steps]
    marks = [cell.text for cell in list(rows[23].every("td"))[1:]]
    assert marks == ["ok", "xf", "xf", "xf", "ok", "xf", "xf", "xf"]


def test_tracebacks_are_folded_and_whole(page: Node) -> None:
    (article,) = [a for a in page.every("article") if "raised" in a.one("h3").text]
    (folded,) = article.every("details")
    assert folded.one("summary").text == "Traceback, rank 2" and "open" not in folded.attributes
    assert folded.one("pre").text.endswith("line 467, in matmul_ogs\nRuntimeError: PassManager::run failed")


def test_a_known_cause_is_explained_for_who_has_no_command_line(page: Node) -> None:
    text = page.one("article").text
    assert "Triton launches on the current device and never looks at where the tensors are" in text


def test_environment(page: Node) -> None:
    terms = list(page.every("dl"))[-1]
    facts = dict(zip((t.text for t in terms.every("dt")), (d.text for d in terms.every("dd")), strict=True))
    assert facts["scenario"] == "gate: a title" and facts["started"] == "2026-11-18 11:06:40 UTC"
    assert facts["command"] == "gpucheck run gate --nproc 4 --seed 0" and facts["torch"] == "2.0"
    assert facts["library content"] == "f" * 64
    places = [[c.text for c in row.every("td")] for row in page.one("table", "places").one("tbody").every("tr")]
    assert places[5] == ["node-1", "NVIDIA H200"]


def test_every_link_leads_somewhere_and_ids_are_unique(page: Node) -> None:
    ids = Counter(node.attributes["id"] for node in page.every() if "id" in node.attributes)
    assert set(ids.values()) == {1}
    links = {node.attributes["href"] for node in page.every("a")}
    assert len(links) > 15 and all(link and link[0] == "#" and link[1:] in ids for link in links)


def nothing_else_is_needed(page: Node) -> None:
    for node in page.every():
        for name, value in node.attributes.items():
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                assert value and value.startswith(("#", "data:")), (node.tag, name, value)
            assert not name.startswith("on"), (node.tag, name)
    assert "url(" not in page.one("style").text and "@import" not in page.one("style").text
    (script,) = page.every("script")
    (policy,) = [n for n in page.every("meta") if n.attributes.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert policy.attributes["content"] == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_nothing_else_is_needed_whatever_things_are_called(page: Node, hostile: Report) -> None:
    nothing_else_is_needed(page)
    nothing_else_is_needed(read(render(hostile)))


def test_hostile_names_stay_text(page: Node, hostile: Report) -> None:
    found = read(render(hostile))
    assert {node.tag for node in found.every()} <= {node.tag for node in page.every()} | {"br"}
    assert {name for node in found.every() for name in node.attributes} <= {
        name for node in page.every() for name in node.attributes
    }
    names = [row.one("th").text for row in found.one("table", "matrix").one("tbody").every("tr")]
    assert names == [visible(name) for name, _, _ in hostile.rows]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", render(hostile))


def test_a_pass_has_no_findings_and_says_so_by_its_verdict(synthetic: Synthetic) -> None:
    found = page_of(synthetic.run(synthetic.plan(ranks=2)))
    assert found.one("h1").text == "PASS 2 cases on 2 ranks" and not list(found.every("article"))
    assert [link.text for link in found.one("nav").every("a")] == [
        "Matrix",
        "Error against bound",
        "Cases",
        "Environment",
    ]


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_can_be_shown(synthetic: Synthetic, outcome: Outcome) -> None:
    run = synthetic.run(synthetic.plan(cases=1), {(0, 0): outcome})
    run.outcome = {}
    table = page_of(run).one("table", "matrix")
    assert [cell.text for cell in table.one("tbody").every("td")][1:] == [MARKS[outcome][0]]


def test_a_run_of_no_cases_can_be_shown(synthetic: Synthetic) -> None:
    assert page_of(synthetic.run(synthetic.plan(cases=0))).one("h1").text.startswith("NOTHING RAN")


def test_the_page_stays_small_and_says_what_it_leaves_out(scattered: Report) -> None:
    text = render(scattered)
    assert len(text.encode()) < 2_000_000 and len(list(read(text).every("figure"))) == MOST_MAPS
    assert f"{480 - MOST_MAPS} further maps left out to keep the page small." in text


def test_a_long_list_of_cases_is_cut_to_what_did_not_pass(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=100, ranks=64), {(7, 3): Outcome.HANG})
    (folded,) = [node for node in page_of(run).every("details") if "everywhere" in node.one("summary").text]
    assert folded.one("summary").text == "1 case not passed everywhere"
    assert [row.one("th").text for row in folded.one("tbody").every("tr")] == ["matmul/7/exact"]


def test_a_matrix_too_wide_to_be_seen_at_once_names_the_bad_ranks(synthetic: Synthetic) -> None:
    wrong = {(0, 77): Outcome.MISMATCH, (1, 77): Outcome.CRASH, (1, 5): Outcome.HANG}
    found = page_of(synthetic.run(synthetic.plan(cases=2, ranks=128), wrong))
    assert "Failing cases rank 77 (2), rank 5 (1)Matrix" in found.one("section").text.replace("check", "Matrix", 1)
    found = page_of(synthetic.run(synthetic.plan(cases=1, ranks=128), {(0, rank): Outcome.HANG for rank in range(99)}))
    assert ", rank 23 (1), ..." in found.one("section").text
