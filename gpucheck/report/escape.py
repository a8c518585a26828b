"""Text that came from elsewhere, made safe to show: names of cases, messages, tracebacks."""

from __future__ import annotations

import re

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline: no XML can hold them, terminals obey them
    "\u200b-\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff"  # without width, ending a line, or turning its direction
    "\ud800-\udfff\ufffe\uffff]"  # those that no encoding holds
)


def visible(text: str) -> str:
    """``text`` with every character that cannot be shown, or that changes how others are shown, as an escape."""
    return _INVISIBLE.sub(_escape, text)


def one_line(text: str) -> str:
    """The same without line breaks."""
    return visible(" ".join(text.split("\n"))).replace("\t", " ")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
