"""The ``gpucheck`` command: its subcommands, and one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from gpucheck import __version__
from gpucheck.cli import (
    audit,
    bisect,
    compile,
    diff,
    doctor,
    explain,
    git_codes,
    library,
    listing,
    new,
    preset,
    replay,
    report,
    run,
    selftest,
)
from gpucheck.model.errors import ExitCode, GpucheckError


class Group(TyperGroup):
    """Ends the command on the two errors that typer, depending on its version, turns into exit code 1: FAIL here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            fail("interrupted", ExitCode.INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(ExitCode.BROKEN_PIPE)


app = typer.Typer(
    cls=Group,
    name="gpucheck",
    help="Prove that every GPU rank computes the right numbers with exactly the software installed there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", rich_help_panel=None)(run.run)
app.command("list")(listing.list_)
app.command("report")(report.report)
app.command("replay")(replay.replay)
app.command("bisect")(bisect.bisect)
app.command("diff")(diff.diff)
app.command("explain")(explain.explain)
app.command("audit")(audit.audit)
app.command("compile")(compile.compile_)
app.command("doctor")(doctor.doctor)
app.command("preset")(preset.preset)
app.command("selftest")(selftest.selftest)
app.add_typer(library.app, name="library")
app.add_typer(new.app, name="new")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpucheck {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prove that every GPU rank computes the right numbers with exactly the software installed there."""


def main() -> NoReturn:
    """Runs the command line and ends with its exit code, in the terms of git where ``run --bisect`` asks for them."""
    if git_codes.asked_for(sys.argv[1:]):
        git_codes.translated(_main)
    _main()


def _main() -> NoReturn:
    """Runs the command line; every error meant for the user is one message on stderr and an exit code."""
    from gpucheck.library.identity import check_identity

    try:
        check_identity()
        app()
    except GpucheckError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), ExitCode.INCONCLUSIVE)
    raise AssertionError("typer ends the process itself")


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with one message."""
    print(f"gpucheck: {message}", file=sys.stderr)
    sys.exit(code)
