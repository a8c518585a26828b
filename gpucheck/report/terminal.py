"""The report on a terminal, coloured and wrapped by rich."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from gpucheck.report.blocks import Report, Sheet
from gpucheck.report.formats.text import lines, plain


def show(report: Report | Sheet, console: Console, *, verbose: bool = False) -> None:
    """Prints the report; off a terminal as plain lines."""
    if not console.is_terminal:
        console.file.write(plain(report, verbose=verbose) + "\n")
        return
    for line in lines(report, verbose=verbose):
        console.print(Text.assemble(*line), overflow="fold", highlight=False)
