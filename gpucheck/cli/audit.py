"""``gpucheck audit``: device hazards in the library's source, confirmed by asking it under two stand-in devices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from gpucheck.cli.options import LibraryOption

if TYPE_CHECKING:
    from gpucheck.library.copies import LibraryCopy
    from gpucheck.tools.audit.hazard import Hazard

MARKS = {True: "confirmed", False: "not so", None: "source"}


def audit(
    library: LibraryOption = None,
    probe: Annotated[
        bool, typer.Option(help="Confirm hazards: run the library's host code with two stand-in devices.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find code in the library that can use the wrong GPU. Needs no GPU; a hazard is not a failure."""
    from gpucheck.library.library_option import parse_source, resolve
    from gpucheck.tools.audit.probe import not_probed
    from gpucheck.tools.audit.probe import probe as probe_library
    from gpucheck.tools.audit.scan import scan

    copy = resolve(parse_source(library))
    hazards = scan(copy.package)
    hazards = probe_library(copy, hazards) if probe else not_probed(hazards, "--no-probe was given")
    if as_json:
        typer.echo(json.dumps([hazard.to_json() for hazard in hazards], indent=1))
    else:
        _print(copy, hazards)


def _print(copy: LibraryCopy, hazards: Sequence[Hazard]) -> None:
    counts = [(mark, sum(hazard.confirmed is value for hazard in hazards)) for value, mark in MARKS.items()]
    summary = ", ".join(f"{count} {mark}" for mark, count in counts if count)
    typer.echo(f"triton_kernels {copy.name} ({copy.origin}, {copy.content[:8]}), {copy.package}")
    typer.echo(f"{len(hazards)} hazards" + (f": {summary}" if summary else ""))
    for kind, group in groupby(hazards, key=lambda hazard: hazard.kind):
        members = list(group)
        typer.echo(f"\n{kind.value} ({len(members)}): {members[0].meaning.title}")
        width = max(len(f"{hazard.file}:{hazard.line}") for hazard in members)
        for hazard in members:
            place = f"{hazard.file}:{hazard.line}"
            typer.echo(f"  {MARKS[hazard.confirmed]:<9}  {place:<{width}}  {hazard.code}")
        for evidence in dict.fromkeys(hazard.evidence for hazard in members if hazard.evidence):
            typer.echo(f"  probe   {evidence}")
        typer.echo(f"  causes  {members[0].meaning.causes}")
        typer.echo(f"  fix     {members[0].meaning.fix}")
