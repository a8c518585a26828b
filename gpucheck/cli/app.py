"""The ``gpucheck`` command: its subcommands, and one place where errors become messages and exit codes."""

from __future__ import annotations

import inspect
import os
import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from gpucheck import __version__
from gpucheck.cli import exit_codes, git_codes
from gpucheck.model.errors import ExitCode, GpucheckError
from gpucheck.report.escape import visible

COMMANDS = {
    "run": ("run", "run"),
    "screen": ("screen", "screen"),
    "list": ("listing", "list_"),
    "report": ("report", "report"),
    "accept": ("accept", "accept"),
    "replay": ("replay", "replay"),
    "bisect": ("bisect", "bisect"),
    "diff": ("diff", "diff"),
    "attest": ("attest", "attest"),
    "verify": ("verify", "verify"),
    "explain": ("explain", "explain"),
    "audit": ("audit", "audit"),
    "compile": ("compile", "compile_"),
    "doctor": ("doctor", "doctor"),
    "preset": ("preset", "preset"),
    "selftest": ("selftest", "selftest"),
    "serve": ("serve", "serve"),
    "library": ("library", "app"),
    "new": ("new", "app"),
}
"""Name -> the module of this package and what it is there: a function, or an app of further commands."""


class Commands(dict[str, Any]):
    """The commands by name, each loaded when it is asked for: most runs of the program need one.

    Attributes:
        brief: whether names and help are all that is asked for.
    """

    brief = False

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(COMMANDS))

    def __getitem__(self, name: str) -> Any:
        module, attribute = COMMANDS[name]
        found = getattr(import_module(f"gpucheck.cli.{module}"), attribute)
        several = isinstance(found, typer.Typer)
        if self.brief:
            words = found.info.help if several else inspect.getdoc(found)
            return TyperCommand(name, short_help=(words or "").partition("\n\n")[0])
        command: Any
        if several:
            command = typer.main.get_group(found)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command(name)(found)
            command = typer.main.get_command(alone)
        command.name = name
        return command

    def get(self, name: str, default: Any = None) -> Any:
        if name not in COMMANDS:
            return default
        return self[name]


class Group(TyperGroup):
    """Ends the command on the two errors that typer, depending on its version, turns into exit code 1: FAIL here."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = self._ours = Commands()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._ours.brief = True
        self.rich_markup_mode = None  # what typer loads to draw boxes takes as long as all else together
        super().format_help(ctx, formatter)

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
    """Runs the command line and ends with its exit code, in the terms of others where options ask for them."""
    if git_codes.asked_for(sys.argv[1:]):
        git_codes.translated(_main)
    if scheme := exit_codes.asked_for(sys.argv[1:]):
        exit_codes.translated(_main, scheme)
    _main()


def _main() -> NoReturn:
    """Runs the command line; every error meant for the user is one message on stderr and an exit code."""
    from gpucheck.library.identity import check_identity

    try:
        check_identity()
        app()
    except GpucheckError as error:
        exit_codes.tell(sys.argv[1:], str(error))
        fail(str(error), error.exit_code)
    except OSError as error:
        fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), ExitCode.INCONCLUSIVE)
    except KeyboardInterrupt:
        fail("interrupted", ExitCode.INTERRUPTED)
    raise AssertionError("typer ends the process itself")


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with one message; what others said in it reaches no terminal as a command."""
    print(f"gpucheck: {visible(message)}", file=sys.stderr)
    sys.exit(code)
