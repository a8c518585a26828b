"""``gpucheck library``: which copies of triton_kernels are known, at hand and used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from gpucheck.library.copies import LibraryCopy

app = typer.Typer(help="Find, fetch and identify the triton_kernels under test.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """List the known contents, what is cached, what is installed and which one is used by default."""
    overview = _overview()
    if as_json:
        _print_json(overview)
    else:
        _print_overview(overview)


@app.command()
def show(
    library: Annotated[
        str | None,
        typer.Option("--library", metavar="SPEC", help="installed, path:DIR or wheel:NAME==VERSION."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the copy a run would test: where it lies, where it came from, what it is."""
    from gpucheck.host.software import installed_version
    from gpucheck.library.content import TRITON_RANGES, python_file_count, triton_problem
    from gpucheck.library.library_option import parse_source, resolve

    copy = resolve(parse_source(library))
    triton = installed_version("triton")
    problem = triton_problem(copy.generation, triton) if triton else None
    facts = {
        **_copy_facts(copy),
        "files": python_file_count(copy.package),
        "triton": str(TRITON_RANGES[copy.generation]),
        "installed_triton": triton,
        "triton_problem": problem,
    }
    if as_json:
        _print_json(facts)
        return
    here = "no Triton is installed here" if triton is None else problem or f"the Triton here, {triton}, fits"
    typer.echo(f"root        {copy.root}")
    typer.echo(f"origin      {copy.origin}")
    typer.echo(f"content     {copy.name}  {copy.content}")
    typer.echo(f"generation  {copy.generation}")
    typer.echo(f"files       {facts['files']} Python files")
    typer.echo(f"triton      {facts['triton']}: {here}")


@app.command()
def fetch(
    requirement: Annotated[str, typer.Argument(metavar="NAME==VERSION", help="A release, e.g. vllm==0.33.0.")],
) -> None:
    """Take the library out of a public wheel into the cache; only its own files are downloaded."""
    from gpucheck.library.cache import split_requirement
    from gpucheck.library.fetch import fetch as fetch_library
    from gpucheck.model.errors import UsageError

    parts = split_requirement(requirement)
    if parts is None:
        raise UsageError(f"{requirement!r} is not understood; expected NAME==VERSION, for example vllm==0.33.0")
    copy = fetch_library(*parts)
    typer.echo(f"{copy.origin}: content {copy.name} ({copy.content[:8]}), generation {copy.generation}\n{copy.root}")


def _overview() -> dict[str, Any]:
    """Everything ``list`` prints, as plain data. Nothing is fetched and nothing imported."""
    from gpucheck.library.cache import cached_folders
    from gpucheck.library.content import KNOWN
    from gpucheck.library.library_option import DEFAULT_WHEEL

    known = [
        {
            "name": entry.name,
            "generation": entry.generation,
            "triton": str(entry.triton),
            "content": entry.content,
            "carriers": [str(carrier) for carrier in entry.carriers],
            "example": entry.example,
        }
        for entry in KNOWN
    ]
    installed = _installed()
    return {
        "known": known,
        "cached": sorted(map(_cached, cached_folders()), key=lambda entry: entry.get("name", "")),
        "installed": installed,
        "default": installed or {"wheel": "{}=={}".format(*DEFAULT_WHEEL)},
    }


def _installed() -> dict[str, Any] | None:
    """The installed copy, a dictionary with ``problem`` where it cannot be used, or None."""
    from gpucheck.library.identity import check_installed_library
    from gpucheck.library.installed import locate_installed
    from gpucheck.model.errors import GpucheckError

    try:
        check_installed_library()
        copy = locate_installed()
    except GpucheckError as error:
        return {"problem": str(error)}
    return _copy_facts(copy) if copy else None


def _cached(folder: Path) -> dict[str, Any]:
    from gpucheck.library.cache import Damaged, read_cached
    from gpucheck.model.errors import GpucheckError

    try:
        copy = read_cached(folder)
    except (Damaged, GpucheckError) as error:
        return {"root": str(folder), "problem": str(error)}
    return _copy_facts(copy) if copy else {"root": str(folder), "problem": "gone"}


def _copy_facts(copy: LibraryCopy) -> dict[str, Any]:
    return {
        "root": str(copy.root),
        "origin": copy.origin,
        "content": copy.content,
        "name": copy.name,
        "generation": copy.generation,
        "installed": copy.installed,
    }


def _print_json(data: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(data, indent=2))


def _print_overview(overview: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    known = _table("known", "generation", "triton", "content", "carried by")
    for entry in overview["known"]:
        carriers = "\n".join(entry["carriers"])
        known.add_row(entry["name"], entry["generation"], entry["triton"], entry["content"][:8], carriers)
    console.print(known)
    if overview["cached"]:
        console.print()
        cached = _table("cached", "generation", "content", "from")
        for entry in overview["cached"]:
            if "problem" in entry:
                cached.add_row("unusable", "", "", f"{entry['root']}: {entry['problem']}")
            else:
                cached.add_row(entry["name"], entry["generation"], entry["content"][:8], entry["origin"])
        console.print(cached)
    typer.echo(f"\ninstalled  {_in_words(overview['installed']) or 'none'}")
    typer.echo(f"default    {_in_words(overview['default'])}")


def _in_words(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    if "wheel" in entry:
        return f"wheel:{entry['wheel']}"
    if "problem" in entry:
        return str(entry["problem"])
    return f"{entry['name']}, {entry['origin']}, generation {entry['generation']}, {entry['root']}"


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in ("known", "generation", "triton", "content"))
    return table
