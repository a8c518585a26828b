from __future__ import annotations

from gpucheck.report.formats.html.markup import Html, joined, tag


def test_strings_are_escaped_and_elements_are_not() -> None:
    assert tag("p", "a < b & c", tag("b", '"quoted"')) == '<p>a &lt; b &amp; c<b>"quoted"</b></p>'
    assert joined(["<", Html("<br>"), ">"], "\n") == "&lt;\n<br>\n&gt;"
    assert joined([]) == ""


def test_attributes_are_escaped_left_out_and_named_as_html_does() -> None:
    assert tag("td", class_="a", aria_label="\"><x y='", colspan=2, title=None, hidden=False, open=True) == (
        '<td class="a" aria-label="&quot;&gt;&lt;x y=&#x27;" colspan="2" open></td>'
    )


def test_elements_without_content_have_no_end() -> None:
    assert tag("meta", name="viewport") == '<meta name="viewport">' and tag("br") == "<br>"


def test_what_cannot_be_shown_is_spelled_out() -> None:
    assert tag("p", "\x00\ud800", title="\x1b") == r'<p title="\x1b">\x00\ud800</p>'
