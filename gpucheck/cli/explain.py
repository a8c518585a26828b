"""``gpucheck explain``: what a cause or a known fault means, how it shows, what to do about it; needs no torch."""

from __future__ import annotations

import textwrap
from difflib import get_close_matches
from typing import Annotated

import typer

from gpucheck.model.errors import UsageError

WIDTH = 100


def explain(
    cause: Annotated[
        list[str] | None,
        typer.Argument(help="A cause, title or known fault of a finding; without one, all are listed."),
    ] = None,
) -> None:
    """Explain a cause or a known fault that a finding names."""
    from gpucheck.diagnose.causes import CAUSES, described
    from gpucheck.diagnose.error_pattern import PATTERNS
    from gpucheck.diagnose.known_faults import known_faults, page

    if not cause:
        for title, known in CAUSES.items():
            typer.echo(f"{title}\n{_indented(known.means.partition('. ')[0].rstrip('.') + '.', '  ')}")
        typer.echo(f"what is wrong with an output\n{_indented(', '.join(PATTERNS), '  ')}")
        typer.echo("known faults of public software")
        for each in known_faults():
            typer.echo(_indented(each.title, f"  {each.id}  "))
        return
    name = " ".join(cause)
    found = {title: about.parts for title, about in described(name).items()}
    if fault := page(name):
        found = {f"{fault.id}: {fault.title}": fault.parts}
    if not found:
        titles = [*CAUSES, *PATTERNS, *(each.id for each in known_faults())]
        near = ", ".join(get_close_matches(name.lower(), titles))
        raise UsageError(f"unknown cause {name!r}{near and f', perhaps {near}'}; gpucheck explain lists all")
    for title, parts in found.items():
        typer.echo(_indented(title, ""))
        for part, text in parts.items():
            typer.echo(_indented(text, f"  {part:<8} "))


def _indented(text: str, first: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)
