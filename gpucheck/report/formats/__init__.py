"""The formats of a report file, one module each; the suffix of the file chooses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpucheck.report.blocks import Report

FORMATS = {".json": "json", ".xml": "junit", ".md": "markdown", ".prom": "prometheus", ".html": "html"}
"""Suffix -> module of this package with a function ``render``, imported when it is asked for."""


def render(report: Report, suffix: str) -> str:
    """The text of a file with a suffix that is a key of :data:`FORMATS`."""
    text: str = import_module(f"{__name__}.{FORMATS[suffix]}").render(report)
    return text
