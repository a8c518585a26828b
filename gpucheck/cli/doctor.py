"""``gpucheck doctor``: whether this machine is fit for a run, one line a fact; works without GPUs and without torch."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gpucheck.cli.options import ExpectGpusOption, LibraryOption

if TYPE_CHECKING:
    from gpucheck.tools.doctor.line import Line

NARROWEST = 80
WIDEST = 120
COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
ON_GPUS = ("gpu", "device")
"""Families whose subjects are numbers of GPUs."""


def doctor(
    library: LibraryOption = None,
    expect_gpus: ExpectGpusOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list of lines with stable ids.")] = False,
) -> None:
    """Check GPUs, driver, software, caches and host, try basic operations on each device, and say what to do."""
    from gpucheck.library.library_option import parse_source
    from gpucheck.tools.doctor.examine import examine
    from gpucheck.tools.doctor.line import exit_code
    from gpucheck.tools.doctor.machine import Machine

    lines = examine(Machine(library=parse_source(library), expect_gpus=expect_gpus))
    if as_json:
        typer.echo(json.dumps([line.to_json() for line in lines], indent=1))
    else:
        show(lines)
    raise typer.Exit(exit_code(lines))


def show(lines: Sequence[Line]) -> None:
    """Prints the lines by family; GPUs that say the same share one."""
    from gpucheck.tools.doctor.examine import FAMILIES

    width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size((WIDEST, 0)).columns))
    for family in FAMILIES:
        groups: dict[tuple[str, str, str, str], list[str]] = {}
        for line in lines:
            if line.family == family.name:
                key = (line.fact, line.status.value, line.value, line.advice)
                groups.setdefault(key, []).append(line.subject)
        if groups:
            typer.echo(family.title)
            names = [_name(family.name, fact, subjects) for (fact, *_), subjects in groups.items()]
            column = max(map(len, names)) + 2
            for name, (_, status, value, advice) in zip(names, groups, strict=True):
                _print(name, column, status, value, advice, width)
    counts = {status: sum(line.status.value == status for line in lines) for status in COLOURS}
    typer.echo("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))


def _name(family: str, fact: str, subjects: Sequence[str]) -> str:
    """The fact and what it is about: ``"ecc GPUs 0-7"``."""
    from gpucheck.diagnose.wording import rank_list

    if family not in ON_GPUS or not all(subject.isdigit() for subject in subjects):
        return fact
    return f"{fact} {rank_list(map(int, subjects)).replace('rank', 'GPU')}"


def _print(name: str, column: int, status: str, value: str, advice: str, width: int) -> None:
    start = f"  {typer.style(f'{status:<4}', fg=COLOURS[status])}  {name:<{column}}"
    indent = " " * (8 + column)
    wrapped = textwrap.wrap(value, width - len(indent), break_on_hyphens=False, break_long_words=False) or [""]
    typer.echo(start + wrapped[0])
    for line in wrapped[1:]:
        typer.echo(indent + line)
    if advice:
        for line in textwrap.wrap(
            advice,
            width - len(indent),
            initial_indent="do: ",
            subsequent_indent="    ",
            break_on_hyphens=False,
            break_long_words=False,
        ):
            typer.echo(indent + line)
