"""The formats a report is written in, chosen by the suffix of the file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpucheck.report.blocks import Report

FORMATS = {".json": "json", ".xml": "junit", ".md": "markdown", ".prom": "prometheus", ".html": "html"}
"""Suffix -> module of this package, imported when it is asked for."""


def known(path: Path) -> bool:
    """Whether the suffix names a format."""
    return path.suffix in FORMATS


def render(report: Report, path: Path) -> str:
    """The report in the format of a file; see :func:`known`."""
    text: str = import_module(f"gpucheck.report.{FORMATS[path.suffix]}").render(report)
    return text
