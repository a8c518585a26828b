"""``gpucheck explain``: what a cause means, how it shows, how to confirm and fix it; needs no torch."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from gpucheck.model.errors import UsageError

WIDTH = 100


def explain(
    cause: Annotated[
        list[str] | None, typer.Argument(help="A finding's cause or title; without one, all causes are listed.")
    ] = None,
) -> None:
    """Explain a cause that a finding names."""
    from gpucheck.diagnose.causes import CAUSES, described
    from gpucheck.diagnose.error_pattern import PATTERNS

    if not cause:
        for name, known in CAUSES.items():
            typer.echo(f"{name}\n{_indented(known.means.partition('. ')[0].rstrip('.') + '.', '  ')}")
        typer.echo(f"what is wrong with an output\n{_indented(', '.join(PATTERNS), '  ')}")
        return
    name = " ".join(cause)
    found = described(name)
    if not found:
        raise UsageError(f"unknown cause {name!r}; known: {', '.join([*CAUSES, *PATTERNS])}")
    for title, page in found.items():
        typer.echo(title)
        for part, text in page.parts.items():
            typer.echo(_indented(text, f"  {part:<8} "))


def _indented(text: str, first: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)
