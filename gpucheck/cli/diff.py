"""``gpucheck diff``: two stored runs held against each other; needs no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from gpucheck.model.errors import ExitCode


def diff(
    run_a: Annotated[Path, typer.Argument(help="Folder of run A, for example before a change.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(help="Folder of run B, for example after it.", show_default=False)],
    common: Annotated[bool, typer.Option("--common", help="Compare only the cases that both runs planned.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every case.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the comparison as JSON.")
    ] = None,
) -> None:
    """Compare two runs; ends with 1 where a case that was right in A is wrong or missing in B."""
    from gpucheck.cli.present import check_files
    from gpucheck.diagnose.compare import compare
    from gpucheck.records.run_folder import read_run, write_json
    from gpucheck.report import comparison as rendered

    check_files(json_file, [])
    comparison = compare(read_run(run_a), read_run(run_b), common=common)
    names = (str(run_a), str(run_b))
    if json_file == "-":
        json.dump(rendered.to_json(comparison, names), sys.stdout, indent=1)
        print()
    else:
        typer.echo("\n".join(rendered.lines(comparison, names, verbose=verbose)))
        if json_file:
            write_json(Path(json_file), rendered.to_json(comparison, names))
    raise typer.Exit(ExitCode.FAIL if comparison.regressions else ExitCode.PASS)
