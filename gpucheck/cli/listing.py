"""``gpucheck list``: scenarios, checks and cases; needs no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from gpucheck.model.errors import UsageError


def list_(
    cases: Annotated[bool, typer.Option("--cases", help="List the cases of a scenario.")] = False,
    scenario: Annotated[str | None, typer.Option(help="A built-in scenario, or the path of a TOML file.")] = None,
    checks: Annotated[bool, typer.Option("--checks", help="List the checks and the keys they take.")] = False,
) -> None:
    """List scenarios, checks, or the cases of a scenario."""
    if cases:
        _cases(scenario)
    elif checks:
        _checks()
    elif scenario:
        raise UsageError("--scenario goes with --cases")
    else:
        _overview()


def _overview() -> None:
    from gpucheck.checks import CHECKS, load
    from gpucheck.plan import scenario as scenarios

    typer.echo("scenarios")
    for name, path in scenarios.builtin().items():
        loaded = scenarios.load(path)
        typer.echo(f"  {name:<14} {len(loaded.steps):>4} cases  {loaded.title}")
    typer.echo("checks")
    for name in CHECKS:
        typer.echo(f"  {name:<14} {load(name).spec.summary}")


def _checks() -> None:
    from gpucheck.checks import CHECKS, load

    for name in CHECKS:
        spec = load(name).spec
        typer.echo(f"{name}: {spec.summary}; data {', '.join(spec.data_kinds)}")
        for param in spec.params:
            typer.echo(f"  {param.name:<14} {param.help} ({param.expected()}; default {param.default})")


def _cases(name: str | None) -> None:
    from gpucheck.plan import scenario as scenarios

    names = [name] if name else list(scenarios.builtin())
    for entry in names:
        loaded = scenarios.load(scenarios.find(entry))
        for step in loaded.steps:
            prefix = "" if name else f"{loaded.name}  "
            typer.echo(prefix + step.label)
