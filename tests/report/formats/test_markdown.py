from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Outcome
from gpucheck.report import blocks
from gpucheck.report.blocks import Report
from gpucheck.report.escape import one_line
from gpucheck.report.formats.markdown import render
from tests.conftest import Synthetic
from tests.report.formats.test_text import FAILED, PASSED

PLAIN = {"text", "softbreak", "code_inline", "strong_open", "strong_close"}


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def cells(text: str) -> list[list[str]]:
    """The table, as it is shown."""
    rows: list[list[str]] = []
    within = False
    for token in tokens(text):
        within = token.type in ("th_open", "td_open") or (within and token.type == "inline")
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and within:
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


@pytest.mark.parametrize("outcomes", [PASSED, FAILED], ids=["pass", "failure"])
def test_a_report_from_top_to_bottom(
    synthetic: Synthetic, snapshot: Callable[[str], None], outcomes: dict[tuple[int, int], Outcome]
) -> None:
    run = synthetic.run(synthetic.plan(cases=2, ranks=3), outcomes)
    snapshot(render(blocks.build(run, conclude(run))))


def test_the_matrix_is_a_table_of_its_own_width(busy: Report, hostile: Report) -> None:
    for report in (busy, hostile):
        table = cells(render(report))
        assert len(table) == 1 + len(report.rows)
        assert {len(row) for row in table} == {2 + len(report.ranks)}
        assert [row[0] for row in table[1:]] == [one_line(name) for name, _, _ in report.rows]
    assert cells(render(busy))[1] == ["matmul dense bf16", "5", *["ok"] * 5, "XX", "ok", "ok"]


def test_all_findings_fold_and_only_the_first_is_open(busy: Report) -> None:
    text = render(busy)
    assert text.count("<details open>") == 1 and text.count("<details") == text.count("</details>") == len(
        busy.findings
    )
    commands = {failed_case.replay for finding in busy.findings for failed_case in finding.cases}
    fences = [token.content.rstrip("\n") for token in tokens(text) if token.type == "fence" and token.info == "sh"]
    assert set(fences) == commands and len(fences) == 38


def test_hostile_names_stay_text(hostile: Report) -> None:
    text = render(hostile)
    kinds = Counter(child.type for token in tokens(text) for child in token.children or [])
    assert set(kinds) <= PLAIN, kinds
    shapes = Counter(token.type for token in tokens(text))
    assert shapes["heading_open"] == 1 and shapes["table_open"] == 1 and shapes["ordered_list_open"] == 0
    allowed = ("<details", "<summary>", "</details>")
    for token in tokens(text):
        if token.type == "html_block":
            lines = [line for line in token.content.splitlines() if line]
            assert all(line.startswith(allowed) for line in lines), token.content
            assert all("<script" not in line and "<img" not in line for line in lines)
    shown = [token.content for token in tokens(text) if token.type == "fence"]
    assert any("````\n</details>\n# heading\n- item" in content for content in shown)
    assert r"\x1b[31mred" in text and "\x1b" not in text and text.encode()


def test_a_limit_is_kept_and_says_what_it_cost(synthetic: Synthetic, busy: Report) -> None:
    whole = render(busy)
    for limit in (30_000, 12_000, 6_000, 3_000):
        text = render(busy, limit)
        assert len(text.encode()) <= limit
        assert text.count("<details") == text.count("</details>")
        assert text.startswith("## FAIL: 7 findings, 3 open questions\n") and text.endswith(
            whole[whole.rindex("- Run") :]
        )
    assert "further findings left out here; `gpucheck report` shows all" in render(busy, 6_000)
    assert "... and 2 more cases" in render(busy, 1 << 20) and "more case" not in whole
