"""``gpucheck new``: a check of one's own to start from, with its wrong twin and a scenario; needs no torch."""

from __future__ import annotations

import keyword
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

import gpucheck
from gpucheck.model.errors import UsageError

TEMPLATES = Path(gpucheck.__file__).resolve().parent / "templates" / "skeleton"
FILES = {"check.py": "{}.py", "wrong.py": "{}_wrong.py", "scenario.toml": "{}.toml"}

app = typer.Typer(help="Write files to start from.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Write files to start from."""


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="Name of the check: lowercase letters, digits and underscores.")],
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where to write; made if it is not there.")
    ] = Path("."),
) -> None:
    """Write a check that runs as it is, its wrong twin and a scenario."""
    _require_usable(name)
    paths = {template: folder / pattern.format(name) for template, pattern in FILES.items()}
    for path in paths.values():
        if path.exists():
            raise UsageError(f"{path} exists already; choose another name or --dir")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--dir {folder} is no folder")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    folder.mkdir(parents=True, exist_ok=True)
    for template, path in paths.items():
        text = (TEMPLATES / f"{template}.template").read_text(encoding="utf-8")
        path.write_text(text.replace("NAME", name).replace("CLASS", class_name), encoding="utf-8")
        typer.echo(f"wrote {path}")
    right, wrong, scenario = (shlex.quote(str(path)) for path in paths.values())
    typer.echo(f"passes   gpucheck run {scenario} --check-file {right}")
    typer.echo(f"fails    gpucheck run {scenario} --check-file {wrong}")


def _require_usable(name: str) -> None:
    """Raises UsageError where a check cannot be called ``name``."""
    from gpucheck.checks import CHECKS

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(f"a check cannot be called {name!r}: expected lowercase letters, digits and underscores")
    if name in CHECKS:
        raise UsageError(f"gpucheck has a check called {name!r} itself; choose another name")
