"""Reading a run folder and presenting it: shared by ``run`` and ``report``."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gpucheck.cli import exit_codes
from gpucheck.model.errors import ExitCode, InfrastructureError, UsageError
from gpucheck.report.formats import FORMATS, render

if TYPE_CHECKING:
    from rich.console import Console

    from gpucheck.diagnose.node_verdict import NodeVerdict
    from gpucheck.model.accepted import AcceptedFault
    from gpucheck.model.finding import Conclusion
    from gpucheck.model.record import Verdict
    from gpucheck.report.blocks import Report


@dataclass(frozen=True)
class Presented:
    """What a run folder comes to."""

    conclusion: Conclusion
    report: Report
    node: NodeVerdict

    @property
    def unchecked(self) -> str:
        """In words that no GPU was checked; "" where one was."""
        from gpucheck.report.blocks import NO_GPU_CHECKED

        return "" if self.report.gpus_checked else NO_GPU_CHECKED

    def line(self, folder: Path) -> str:
        """All that ``--quiet`` shows."""
        return "  ".join(
            filter(None, (self.conclusion.verdict.value, str(folder), self.report.accepted, self.unchecked))
        )


def load() -> None:
    """Loads what :meth:`Output.present` needs, while there is time: half of what a command imports is this."""
    for name in ("diagnose.conclude", "diagnose.node_verdict", "records.damage", "report.blocks", "report.terminal"):
        import_module(f"gpucheck.{name}")


def exit_code(verdict: Verdict) -> int:
    """The exit code of a verdict."""
    return int(ExitCode[verdict.name])


def check_files(
    json_file: str | None,
    write: Sequence[str],
    run_dir: Path | None = None,
    known: Collection[str] = FORMATS,
    node_file: str | None = None,
) -> None:
    """Raises UsageError where a report could not be written, before the work it reports on.

    Args:
        json_file: as given to ``--json``.
        write: as given to ``--write``.
        run_dir: the folder of the run, which need not exist yet.
        known: the suffixes that choose a format.
        node_file: as given to ``--node-verdict``.
    """
    if json_file == node_file == "-":
        raise UsageError("--json - and --node-verdict - both write to stdout: give one of them a file")
    for option, file in (("--json", json_file), ("--node-verdict", node_file)):
        if file and file != "-":
            _check_file(option, file, run_dir)
    for name in write:
        if Path(name).suffix not in known:
            raise UsageError(f"--write {name}: the suffix chooses the format; known: {', '.join(known)}")
        _check_file("--write", name, run_dir)


def _check_file(option: str, name: str, run_dir: Path | None) -> None:
    path = Path(name).absolute()
    if path.is_dir():
        raise UsageError(f"{option} {name} is a folder, expected a file" + (" or -" if option != "--write" else ""))
    if run_dir is not None and path.parent == run_dir.absolute() and not run_dir.exists():
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option} {name} cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option} {name} cannot be written: permission denied")


@dataclass(frozen=True)
class Output:
    """Where the report of a run goes, as the options of a command say."""

    json_file: str | None = None  # "-": stdout
    write: Sequence[str] = ()  # files, each in the format of its suffix
    node_file: str | None = None  # of the verdict for each GPU; "-": stdout
    exit_codes: str | None = None  # whose codes the command ends with; None: gpucheck's own
    verbose: bool = False
    quiet: bool = False  # of the report itself, at most one line is shown

    @property
    def takes_stdout(self) -> bool:
        """Whether a file goes there, and nothing else may."""
        return "-" in (self.json_file, self.node_file)

    def check(self, run_dir: Path | None = None) -> None:
        """See :func:`check_files`."""
        check_files(self.json_file, self.write, run_dir, node_file=self.node_file)

    def present(
        self, run_dir: Path, console: Console, *, announced: bool = False, accepted: Sequence[AcceptedFault] = ()
    ) -> Presented:
        """Concludes a run folder and shows it.

        Args:
            announced: whether to tell the place this runs in, as :func:`gpucheck.report.announce.announce` does.
            accepted: faults to accept beside those that the run was told of.

        Raises:
            UsageError: no run folder, or a file that could never be written.
            InfrastructureError: a file cannot be written after all.
        """
        from gpucheck.diagnose.conclude import conclude
        from gpucheck.diagnose.node_verdict import node_verdict
        from gpucheck.records.damage import explained_by_damage
        from gpucheck.records.run_folder import read_run
        from gpucheck.report import blocks

        self.check()
        run = read_run(run_dir, accepted)
        with explained_by_damage(run):
            conclusion = conclude(run)
            report, node = blocks.build(run, conclusion), node_verdict(run, conclusion)
            if not self.quiet:
                from gpucheck.report.terminal import show

                show(report, console, verbose=self.verbose)
            if announced:
                from gpucheck.report.announce import announce

                announce(report)
            if self.json_file:
                put_json(self.json_file, render(report, ".json"))
            for name in self.write:
                write_file("--write", name, render(report, Path(name).suffix))
            if self.node_file:
                from gpucheck.report.formats import node_json

                put_json(self.node_file, node_json.render(report, node), "--node-verdict")
        presented = Presented(conclusion, report, node)
        if self.quiet and not self.takes_stdout:
            typer.echo(presented.line(run_dir))
        return presented

    def exit_code(self, presented: Presented) -> int:
        """The exit code of the verdict."""
        if self.exit_codes:
            return exit_codes.code_of(presented.node)
        return exit_code(presented.conclusion.verdict)


def put_json(json_file: str, text: str, option: str = "--json") -> None:
    """Writes what ``--json`` or the like asks for: to a file, or to stdout for ``-``."""
    if json_file == "-":
        sys.stdout.write(text)
    else:
        write_file(option, json_file, text)


def write_file(option: str, name: str, text: str) -> None:
    """Writes what an option asks for.

    Raises:
        InfrastructureError: the file cannot be written.
    """
    from gpucheck.records.run_folder import write_text

    try:
        write_text(Path(name), text)
    except OSError as error:
        raise InfrastructureError(f"{option} {name} cannot be written: {error.strerror}") from None
