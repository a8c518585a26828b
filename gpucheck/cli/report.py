"""``gpucheck report``: shows a stored run; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)],
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every case of every finding.")] = False,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON.")] = None,
) -> None:
    """Show the report of a stored run and end with its exit code."""
    from rich.console import Console

    from gpucheck.cli.present import exit_code, present

    conclusion = present(run_dir, Console(), quiet=json_file == "-", verbose=verbose, json_file=json_file)
    raise typer.Exit(exit_code(conclusion.verdict))
