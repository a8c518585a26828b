"""``gpucheck report``: shows a stored run; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpucheck.cli.options import AcceptOption, JsonOption, VerboseOption, WriteOption
from gpucheck.model.errors import UsageError


def report(
    run_dir: Annotated[Path | None, typer.Argument(help="The folder of a run.", show_default=False)] = None,
    accept: AcceptOption = None,
    verbose: VerboseOption = False,
    json_file: JsonOption = None,
    write: WriteOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the JSON report.")] = False,
) -> None:
    """Show the report of a stored run and end with its exit code."""
    if schema:
        import json

        from gpucheck.report.formats.json_schema import report_schema

        typer.echo(json.dumps(report_schema(), indent=1))
        return
    if run_dir is None:
        raise UsageError("report needs the folder of a run, for example runs/1121-103000")

    from rich.console import Console

    from gpucheck.cli.present import exit_code, present
    from gpucheck.plan.accepted_file import read_files

    quiet = json_file == "-"
    accepted = read_files(accept or [])
    conclusion, _ = present(
        run_dir,
        Console(),
        quiet=quiet,
        verbose=verbose,
        json_file=json_file,
        write=write or [],
        accepted=accepted,
    )
    raise typer.Exit(exit_code(conclusion.verdict))
