"""``gpucheck explain``: what a cause means, how it shows, how to confirm and mend it; needs no torch."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from gpucheck.model.errors import UsageError

WIDTH = 100


def explain(
    cause: Annotated[
        list[str] | None, typer.Argument(help="The cause a finding names; without one, all are listed.")
    ] = None,
) -> None:
    """Explain a cause that a finding names."""
    from gpucheck.diagnose.causes import CAUSES, described

    if not cause:
        for name, known in CAUSES.items():
            typer.echo(f"{name}\n{_indented(known.means.partition('. ')[0].rstrip('.') + '.', '  ')}")
        return
    name = " ".join(cause)
    found = described(name)
    if found is None:
        raise UsageError(f"unknown cause {name!r}; known: {', '.join(CAUSES)}")
    typer.echo(name.strip().lower())
    for title, text in (("means", found.means), ("shows", found.shows), ("confirm", found.confirm)):
        typer.echo(_indented(text, f"  {title:<8} "))
    typer.echo(_indented(found.mend, f"  {'mend':<8} "))


def _indented(text: str, first: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)
