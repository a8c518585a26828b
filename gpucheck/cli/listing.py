"""``gpucheck list``: scenarios, checks, placements, cases, and what a scenario can find; mostly without torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from gpucheck.cli.options import CandidateOption, CheckFileOption, ProblemOption, check_sources
from gpucheck.model.errors import UsageError

if TYPE_CHECKING:
    from gpucheck.model.check_source import CheckSource
    from gpucheck.plan.scenario import Scenario


def list_(
    cases: Annotated[bool, typer.Option("--cases", help="List the cases of a scenario.")] = False,
    scenario: Annotated[str | None, typer.Option(help="A built-in scenario, or the path of a TOML file.")] = None,
    checks: Annotated[bool, typer.Option("--checks", help="List the checks and the keys they take.")] = False,
    power: Annotated[
        bool, typer.Option("--power", help="Show how rare a wrong call and how small an error a scenario can find.")
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks that --power is for.", show_default="one a GPU; what the cases need without"),
    ] = None,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write --power as JSON.")] = None,
    check_file: CheckFileOption = None,
    problem: ProblemOption = None,
    candidate: CandidateOption = None,
) -> None:
    """List scenarios, checks and placements, the cases of a scenario, or what it can find."""
    given, _ = check_sources(check_file, problem, candidate)
    if json_file and not power:
        raise UsageError("--json goes with --power")
    if nproc and not power:
        raise UsageError("--nproc goes with --power")
    if power:
        if cases or checks or not scenario:
            raise UsageError("--power goes with --scenario, and without --cases and --checks")
        _power(scenario, json_file, nproc)
    elif cases:
        _cases(scenario, given)
    elif checks:
        _checks()
    elif scenario:
        raise UsageError("--scenario goes with --cases or --power")
    else:
        _overview()


def _overview() -> None:
    from gpucheck.checks import installed, load, names
    from gpucheck.model.placement_table import PLACEMENTS, scenario_placements
    from gpucheck.plan import scenario as scenarios

    typer.echo("scenarios")
    for loaded in _as_here(map(scenarios.load, scenarios.builtin().values())):
        typer.echo(f"  {loaded.name:<14} {len(loaded.steps):>4} cases  {loaded.title}")
    typer.echo("checks")
    for name in filter(installed, names()):
        typer.echo(f"  {name:<19} {load(name).spec.summary}")
    typer.echo("placements")
    for name in scenario_placements():
        typer.echo(f"  {name:<19} {PLACEMENTS[name].summary}")


def _checks() -> None:
    from gpucheck.checks import installed, load, names

    for name in filter(installed, names()):
        spec = load(name).spec
        typer.echo(f"{name}: {spec.summary}; data {', '.join(spec.data_kinds)}")
        for param in spec.params:
            typer.echo(f"  {param.name:<14} {param.help} ({param.expected()}; default {param.default})")


def _cases(name: str | None, given: list[CheckSource]) -> None:
    from gpucheck.plan import scenario as scenarios
    from gpucheck.plan.default_cases import implied

    if name:
        listed = [scenarios.load(scenarios.find(name))]
    elif given:
        listed = [implied(given, None)]
    else:
        listed = [scenarios.load(path) for path in scenarios.builtin().values()]
    for loaded in _as_here(listed):
        for step in loaded.steps:
            prefix = "" if len(listed) == 1 else f"{loaded.name}  "
            typer.echo(prefix + step.label)


def _as_here(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """The scenarios as ``gpucheck run`` takes them here: without optional cases of engines that are not installed."""
    from gpucheck.library.engines.engine_copy import installed_engines
    from gpucheck.plan.select import of_engines

    at_hand = {copy.name for copy in installed_engines()}
    return [of_engines(scenario, at_hand) for scenario in scenarios]


def _power(name: str, json_file: str | None, ranks: int | None) -> None:
    from gpucheck.cli.present import check_files, put_json
    from gpucheck.plan import detection_power as power
    from gpucheck.plan import scenario as scenarios
    from gpucheck.records.run_folder import json_text

    check_files(json_file, [])
    (loaded,) = _as_here([scenarios.load(scenarios.find(name))])
    found = power.of(loaded, ranks)
    if json_file != "-":
        typer.echo("\n".join(found.lines()))
    if json_file:
        put_json(json_file, json_text(found.to_json()))
