"""Reading a run folder and presenting it: shared by ``run`` and ``report``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.errors import ExitCode, UsageError
from gpucheck.model.finding import Conclusion
from gpucheck.model.record import Verdict
from gpucheck.records.folder import read_run, write_json
from gpucheck.report import blocks

if TYPE_CHECKING:
    from rich.console import Console

_EXIT_CODES = {
    Verdict.PASS: ExitCode.PASS,
    Verdict.FAIL: ExitCode.FAIL,
    Verdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Verdict.NOTHING_RAN: ExitCode.NOTHING_RAN,
}


def exit_code(verdict: Verdict) -> int:
    """The exit code of a verdict."""
    return int(_EXIT_CODES[verdict])


def check_json_file(json_file: str | None, run_dir: Path | None = None) -> None:
    """Raises UsageError where the report could not be written, before the work it reports on.

    Args:
        json_file: as given to ``--json``.
        run_dir: the folder of the run, which need not exist yet.
    """
    if not json_file or json_file == "-":
        return
    path = Path(json_file).absolute()
    if path.is_dir():
        raise UsageError(f"--json {json_file} is a folder, expected a file or -")
    if run_dir is not None and path.parent == run_dir.absolute() and not run_dir.exists():
        return
    if not path.parent.is_dir():
        raise UsageError(f"--json {json_file} cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--json {json_file} cannot be written: permission denied")


def present(run_dir: Path, console: Console, *, quiet: bool, verbose: bool, json_file: str | None) -> Conclusion:
    """Concludes a run folder and shows it.

    Args:
        json_file: path to write the report to as JSON, ``-`` for stdout.

    Raises:
        UsageError: no run folder, or the JSON file cannot be written.
    """
    check_json_file(json_file)
    run = read_run(run_dir)
    conclusion = conclude(run)
    report = blocks.build(run, conclusion)
    if not quiet:
        from gpucheck.report.terminal import show

        show(report, console, verbose=verbose)
    if json_file == "-":
        json.dump(blocks.to_json(run, report), sys.stdout, indent=1)
        print()
    elif json_file:
        try:
            write_json(Path(json_file), blocks.to_json(run, report))
        except OSError as error:
            raise UsageError(f"--json {json_file} cannot be written: {error.strerror}") from None
    return conclusion
