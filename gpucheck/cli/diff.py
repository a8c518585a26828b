"""``gpucheck diff``: two stored runs held against each other; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpucheck.cli.options import JsonOption
from gpucheck.model.errors import ExitCode


def diff(
    run_a: Annotated[Path, typer.Argument(help="Folder of run A, for example before a change.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(help="Folder of run B, for example after it.", show_default=False)],
    common: Annotated[bool, typer.Option("--common", help="Compare only the cases that both runs planned.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every case.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Compare two runs; ends with 1 where a case that was right in A is wrong or missing in B."""
    from gpucheck.cli.present import check_files, put_json
    from gpucheck.diagnose.compare import compare
    from gpucheck.records.damage import explained_by_damage
    from gpucheck.records.run_folder import json_text, read_run
    from gpucheck.report import comparison as rendered

    check_files(json_file, [])
    runs, names = (read_run(run_a), read_run(run_b)), (str(run_a), str(run_b))
    with explained_by_damage(*runs):
        comparison = compare(*runs, common=common)
        if json_file != "-":
            typer.echo("\n".join(rendered.lines(comparison, names, verbose=verbose)))
        if json_file:
            put_json(json_file, json_text(rendered.to_json(comparison, names)))
    raise typer.Exit(ExitCode.FAIL if comparison.regressions else ExitCode.PASS)
