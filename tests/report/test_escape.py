from __future__ import annotations

import unicodedata

import pytest

from gpucheck.report.escape import one_line, visible


@pytest.mark.parametrize("text", ["", "matmul/0", "tab\tand\nline", "ä ß 中 🙂 é ×", "\\x1b is spelled out"])
def test_what_can_be_shown_is_left_alone(text: str) -> None:
    assert visible(text) == text


def test_what_cannot_is_spelled_out() -> None:
    assert visible("a\x00b\x1b[31m\r\x7f\x9b") == r"a\x00b\x1b[31m\x0d\x7f\x9b"
    assert visible("x\u202ey\u2066z\u200f \ud800 \uffff") == r"x\u202ey\u2066z\u200f \ud800 \uffff"


def test_no_character_is_left_that_xml_utf8_or_a_terminal_stumbles_over() -> None:
    for code in range(0x10000):
        shown = visible(chr(code))
        if shown == chr(code):
            assert unicodedata.category(shown) not in ("Cs",) and (
                unicodedata.category(shown) != "Cc" or shown in "\t\n"
            )
            assert unicodedata.bidirectional(shown) not in (
                "LRE",
                "RLE",
                "LRO",
                "RLO",
                "PDF",
                "LRI",
                "RLI",
                "FSI",
                "PDI",
            )


def test_one_line_is_one_line() -> None:
    assert one_line("a\nb\tc\r\nd\u2028e\x0bf\x85g").splitlines() == [r"a b c\x0d d\u2028e\x0bf\x85g"]
