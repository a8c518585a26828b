"""HTML by construction: plain strings are escaped wherever they go, only what :func:`tag` made is taken as it is."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from gpucheck.report.escape import visible

_EMPTY = ("meta", "link", "br")


class Html(str):
    """Text that is HTML already."""


def tag(name: str, /, *content: str, **attributes: str | int | bool | None) -> Html:
    """An element.

    Args:
        content: strings, which are escaped, and :class:`Html`, which is not.
        attributes: ``class_`` for class, ``aria_label`` for aria-label; left out where None or False.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(visible(str(value)))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _EMPTY:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(content)}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other, escaped as by :func:`tag`."""
    texts = (part if isinstance(part, Html) else escape(visible(part), quote=False) for part in parts)
    return Html(between.join(texts))
