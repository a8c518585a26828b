"""``gpucheck list``: scenarios, checks and cases; needs no torch for those that gpucheck has itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gpucheck.cli.options import CandidateOption, CheckFileOption, ProblemOption, check_sources
from gpucheck.model.errors import UsageError

if TYPE_CHECKING:
    from gpucheck.model.source import CheckSource


def list_(
    cases: Annotated[bool, typer.Option("--cases", help="List the cases of a scenario.")] = False,
    scenario: Annotated[str | None, typer.Option(help="A built-in scenario, or the path of a TOML file.")] = None,
    checks: Annotated[bool, typer.Option("--checks", help="List the checks and the keys they take.")] = False,
    check_file: CheckFileOption = None,
    problem: ProblemOption = None,
    candidate: CandidateOption = None,
) -> None:
    """List scenarios, checks, or the cases of a scenario."""
    given, _ = check_sources(check_file, problem, candidate)
    if cases:
        _cases(scenario, given)
    elif checks:
        _checks()
    elif scenario:
        raise UsageError("--scenario goes with --cases")
    else:
        _overview()


def _overview() -> None:
    from gpucheck.checks import installed, load, names
    from gpucheck.plan import scenario as scenarios

    typer.echo("scenarios")
    for name, path in scenarios.builtin().items():
        loaded = scenarios.load(path)
        typer.echo(f"  {name:<14} {len(loaded.steps):>4} cases  {loaded.title}")
    typer.echo("checks")
    for name in filter(installed, names()):
        typer.echo(f"  {name:<19} {load(name).spec.summary}")


def _checks() -> None:
    from gpucheck.checks import installed, load, names

    for name in filter(installed, names()):
        spec = load(name).spec
        typer.echo(f"{name}: {spec.summary}; data {', '.join(spec.data_kinds)}")
        for param in spec.params:
            typer.echo(f"  {param.name:<14} {param.help} ({param.expected()}; default {param.default})")


def _cases(name: str | None, given: list[CheckSource]) -> None:
    from gpucheck.plan import scenario as scenarios
    from gpucheck.plan.implied import implied

    if name:
        listed = [scenarios.load(scenarios.find(name))]
    elif given:
        listed = [implied(given, None)]
    else:
        listed = [scenarios.load(path) for path in scenarios.builtin().values()]
    for loaded in listed:
        for step in loaded.steps:
            prefix = "" if len(listed) == 1 else f"{loaded.name}  "
            typer.echo(prefix + step.label)
