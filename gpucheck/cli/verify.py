"""``gpucheck verify``: whether a statement of ``gpucheck attest`` holds; needs no torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpucheck.cli.options import time_span
from gpucheck.model.errors import ExitCode

if TYPE_CHECKING:
    from gpucheck.tools.attest.statement_file import Statement


def verify(
    file: Annotated[Path, typer.Argument(help="A statement, bare or in a signed envelope.", show_default=False)],
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="Against this run folder.")] = None,
    max_age: Annotated[str | None, typer.Option(metavar="TIME", help="Oldest run that will do: 90s, 10m, 24h.")] = None,
    here: Annotated[bool, typer.Option("--here", help="Against the GPUs and the software of this machine.")] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another statement, such as another pod's: what differs.")
    ] = None,
) -> None:
    """Check a statement; ends with 0 only where it holds and is the proof of a PASS on GPUs."""
    from gpucheck.tools.attest import verification as checks
    from gpucheck.tools.attest.statement_file import read_statement

    limit = time_span("--max-age", max_age) if max_age is not None else None
    statement = read_statement(file)
    other = read_statement(against) if against else None
    points = [checks.agrees_with_itself(statement), checks.age(statement, time.time(), limit)]
    points += [checks.against_run(statement, run)] if run else []
    points += checks.on_machine(statement, checks.this_machine()) if here else []
    code = checks.exit_code(statement, points)
    refuted = any(point.holds is False for point in points)
    word = "PROVEN" if code is ExitCode.PASS else "DOES NOT HOLD" if refuted else "NO PROOF"
    typer.echo(f"{word}  {_what(statement)}")
    for point in points:
        mark = {True: "ok", False: "XX", None: "??"}[point.holds]
        typer.echo(f"  {mark}  {point.name:<14}  {point.words}")
    if not statement.signed:
        typer.echo("  --  signature       there is none here: whoever can write the file can change it")
    else:
        typer.echo("  --  signature       not looked at: check it with the tool that signed, such as cosign")
    if other:
        alike = _compared(statement, other)
        code = code if alike else ExitCode.FAIL
    raise typer.Exit(code)


def _what(statement: Statement) -> str:
    said = statement.predicate
    result, run = said["result"], said["run"]
    gpus = sorted({gpu["name"] for gpu in said["gpus"]} - {"", "cpu"})
    where = f"{result['ranks']} x {' + '.join(gpus)}" if gpus else f"{result['ranks']} rank(s), no GPU was checked"
    return f"{result['verdict']}, {run['scenario']} on {where}, run {run['id']}"


def _compared(a: Statement, b: Statement) -> bool:
    from gpucheck.tools.attest.statement_differences import differences, remarks
    from gpucheck.tools.attest.verification import agrees_with_itself

    found = list(differences(a, b))
    if not (itself := agrees_with_itself(b)).holds:
        found.insert(0, f"{b.path} does not hold: {itself.words}")
    typer.echo(f"{a.path} against {b.path}: " + ("these differ" if found else "alike"))
    for line in found:
        typer.echo(f"  XX  {line}")
    for line in remarks(a, b):
        typer.echo(f"  --  {line}")
    return not found
