"""``gpucheck attest``: what a run proved, and on what, as a statement that other tools sign; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpucheck.model.errors import UsageError


def attest(
    run_dir: Annotated[Path | None, typer.Argument(help="The folder of a finished run.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File for the statement.", show_default="stdout")
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME@sha256:HEX", help="What it is also about, such as the image that serves; repeatable."
        ),
    ] = None,
    predicate: Annotated[
        bool, typer.Option("--predicate", help="The predicate alone, for tools that make the statement themselves.")
    ] = False,
    any_verdict: Annotated[
        bool, typer.Option("--any-verdict", help="Also of a run that proves nothing, as a report that is no proof.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a statement.")] = False,
) -> None:
    """Write what a run proved, and on what, as an in-toto statement; sign it with cosign or openssl."""
    from gpucheck.tools.attest.statement import attested, text
    from gpucheck.tools.attest.statement import subject as read_subject
    from gpucheck.tools.attest.statement_schema import statement_schema

    if schema:
        typer.echo(text(statement_schema()), nl=False)
        return
    if run_dir is None:
        raise UsageError("attest needs the folder of a run, for example runs/1121-103000")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out} cannot be written: there is no folder {out.absolute().parent}")
    subjects = [read_subject(each) for each in subject or []]
    statement = attested(run_dir, subjects, any_verdict=any_verdict)
    written = text(statement["predicate"] if predicate else statement)
    if out is None:
        typer.echo(written, nl=False)
    else:
        from gpucheck.cli.present import write_file

        write_file("--out", str(out), written)
