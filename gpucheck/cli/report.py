"""``gpucheck report``: shows a stored run; needs no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gpucheck.cli.options import (
    AcceptOption,
    ExitCodesOption,
    JsonOption,
    NodeVerdictOption,
    VerboseOption,
    WriteOption,
)
from gpucheck.model.errors import UsageError


def report(
    run_dir: Annotated[Path | None, typer.Argument(help="The folder of a run.", show_default=False)] = None,
    accept: AcceptOption = None,
    verbose: VerboseOption = False,
    json_file: JsonOption = None,
    write: WriteOption = None,
    node_verdict: NodeVerdictOption = None,
    exit_codes: ExitCodesOption = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the JSON report, or of --node-verdict with it.")
    ] = False,
) -> None:
    """Show the report of a stored run and end with its exit code."""
    if schema:
        import json

        from gpucheck.report.formats import json_schema, node_json

        typer.echo(json.dumps(node_json.schema() if node_verdict else json_schema.report_schema(), indent=1))
        return
    if run_dir is None:
        raise UsageError("report needs the folder of a run, for example runs/1121-103000")

    from rich.console import Console

    from gpucheck.cli import exit_codes as schemes
    from gpucheck.cli.present import Output
    from gpucheck.plan.accepted_file import read_files

    schemes.check(exit_codes)
    output = Output(json_file, write or [], node_verdict, exit_codes, verbose)
    output = replace(output, quiet=output.takes_stdout)
    raise typer.Exit(output.exit_code(output.present(run_dir, Console(), accepted=read_files(accept or []))))
