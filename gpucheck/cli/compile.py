"""``gpucheck compile``: builds a scenario's kernels for GPUs that are not here, with Tritons that are not installed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gpucheck.cli.options import (
    CandidateOption,
    CaseOption,
    CheckFileOption,
    ChecksOption,
    JsonOption,
    ProblemOption,
    check_sources,
    require,
    split,
)
from gpucheck.model.errors import ExitCode, UsageError
from gpucheck.triton_hooks.targets import DEFAULT

if TYPE_CHECKING:
    from gpucheck.library.copies import LibraryCopy
    from gpucheck.model.case import Case
    from gpucheck.model.check_source import CheckSource
    from gpucheck.plan.scenario import Scenario
    from gpucheck.tools.compile.combinations import Job
    from gpucheck.tools.compile.outcome import Combination, Result
    from gpucheck.tools.compile.tritons import Triton
    from gpucheck.triton_hooks.targets import Target

SCENARIO = "compile"
FORMATS = (".json", ".md")


def compile_(
    scenario: Annotated[
        str | None, typer.Argument(help="Built-in scenario or TOML file.", show_default=SCENARIO)
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="GPUs to compile for (comma-separated or repeated).", show_default=DEFAULT),
    ] = None,
    triton: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VERSION",
            help="Tritons to compile with: a version (fetched into a private folder), installed or path:DIR.",
            show_default="installed",
        ),
    ] = None,
    library: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="The triton_kernels to compile: installed, path:DIR or wheel:NAME==VERSION; repeatable.",
            show_default="the installed one, else wheel:vllm==0.33.0",
        ),
    ] = None,
    checks: ChecksOption = None,
    case: CaseOption = None,
    check_file: CheckFileOption = None,
    problem: ProblemOption = None,
    candidate: CandidateOption = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that compile at once.", show_default="one a core")
    ] = None,
    json_file: JsonOption = None,
    write: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Write the report in the format of the suffix: .json .md; repeatable."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every kernel and every case.")] = False,
) -> None:
    """Build every kernel that a scenario would launch, for GPUs that are not here. Needs no GPU; runs no kernel."""
    from rich.console import Console

    from gpucheck.cli.present import check_files, exit_code, put_json, write_file
    from gpucheck.plan.default_cases import implied
    from gpucheck.plan.scenario import find, load
    from gpucheck.plan.select import select
    from gpucheck.records.run_folder import json_text
    from gpucheck.report.formats.markdown import render
    from gpucheck.report.terminal import show
    from gpucheck.tools.compile import tritons
    from gpucheck.tools.compile.compile_text import Request, sheet, to_json
    from gpucheck.tools.compile.compile_verdict import summarise
    from gpucheck.triton_hooks.targets import parse_targets

    targets = parse_targets(_named("--target", target) or split([DEFAULT]))
    wanted = _named("--triton", triton) or [tritons.INSTALLED]
    given, offered = check_sources(check_file, problem, candidate)
    unselected = implied(given, None) if given and not scenario else load(find(scenario or SCENARIO))
    chosen = select(unselected, _named("--checks", checks), case or [])
    check_files(json_file, write or [], known=FORMATS)
    require("torch")  # the host code of the library needs it
    begin = time.perf_counter()
    found_tritons = {text: tritons.resolve(text) for text in wanted}
    _tell_apart(found_tritons)
    ours, others = _cases(chosen)
    copies = _libraries(library) if others else {}
    results = _build(_jobs(found_tritons.values(), copies, targets, ours, others, [*given, *offered]), jobs)
    request = Request(
        scenario=chosen.name,
        command=_command(chosen, given),
        cases=len(ours) + len(others),
        targets=[entry.name for entry in targets],
        libraries={name: spec for name, (spec, _) in copies.items()},
        tritons={found.version: text for text, found in found_tritons.items()},
        seconds=time.perf_counter() - begin,
    )
    summary = summarise(results)
    if json_file != "-":
        show(sheet(results, summary, request, verbose=verbose), Console(), verbose=verbose)
    as_json = json_text(to_json(results, summary, request))
    if json_file:
        put_json(json_file, as_json)
    for name in write or []:
        whole = sheet(results, summary, request, verbose=True)
        write_file("--write", name, as_json if Path(name).suffix == ".json" else render(whole))
    raise typer.Exit(exit_code(summary.verdict))


def _command(chosen: Scenario, given: Sequence[CheckSource]) -> list[str]:
    named = [] if chosen.implied else [str(chosen.path or chosen.name)]
    return ["gpucheck", "compile", *named, *(option for source in given for option in source.options)]


def _named(option: str, given: list[str] | None) -> list[str]:
    """The values of an option, each once; one that is given and names nothing is a mistake."""
    if given and not split(given):
        raise UsageError(f"{option} {given[0]!r} names nothing")
    return list(dict.fromkeys(split(given)))


def _tell_apart(tritons: Mapping[str, Triton]) -> None:
    """Refuses two Tritons that the report would call by one name; one that is named twice is taken once."""
    seen: dict[str, str] = {}
    for text, found in tritons.items():
        first = seen.setdefault(found.version, text)
        if tritons[first].package != found.package:
            raise UsageError(f"--triton {first} and {text} both say that they are {found.version}: name one at a time")


def _cases(scenario: Scenario) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """The distinct cases: those of our own kernels alone, and those that need the library.

    What ranks run together is left out: it takes a process group.
    """
    from gpucheck.checks import load

    cases = {step.case.id: step.case for step in scenario.steps if not step.together}.values()
    ours = tuple(case for case in cases if not load(case.check).needs_library)
    return ours, tuple(case for case in cases if case not in ours)


def _libraries(specs: list[str] | None) -> dict[str, tuple[str, LibraryCopy]]:
    """Name in the report -> its ``--library``, and the copy; each content once."""
    from gpucheck.library.library_option import parse_source, resolve

    found: dict[str, tuple[str, LibraryCopy]] = {}
    wanted: Sequence[str | None] = specs or [None]
    for spec in wanted:
        source = parse_source(spec)
        copy = resolve(source)
        name = copy.name if copy.name != "unknown" else f"{copy.generation} ({copy.content[:8]})"
        found.setdefault(name, (str(source) if spec else "", copy))
    return found


def _jobs(
    tritons: Iterable[Triton],
    libraries: Mapping[str, tuple[str, LibraryCopy]],
    targets: Sequence[Target],
    ours: tuple[Case, ...],
    others: tuple[Case, ...],
    sources: Sequence[CheckSource],
) -> list[Job]:
    """One job for each library, Triton and target, and for each Triton and target one of our own kernels."""
    from gpucheck.tools.compile.combinations import Job
    from gpucheck.tools.compile.outcome import OWN, Combination

    work: dict[Combination, Job] = {}
    active = tuple(sources)
    for found in tritons:
        for target in targets:
            for name, (_, copy) in libraries.items():
                combination = Combination(name, found.version, target.name)
                work.setdefault(combination, Job(combination, found, copy, target, others, active))
            if ours:
                combination = Combination(OWN, found.version, target.name)
                work.setdefault(combination, Job(combination, found, None, target, ours, active))
    return list(work.values())


def _build(work: Sequence[Job], jobs: int | None) -> list[Result]:
    """The results of all jobs in their order; tells of each as it comes."""
    from gpucheck.tools.compile.combinations import build

    results: dict[Combination, Result] = {}
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        for result in build(work, jobs or len(os.sched_getaffinity(0))):
            results[result.combination] = result
            _progress(result, len(results), len(work))
    finally:
        signal.signal(signal.SIGTERM, before)
    return [results[job.combination] for job in work]


def _terminated(*_: object) -> NoReturn:
    """Ends the command in order: its processes are ended, what they have compiled is kept."""
    print("gpucheck: terminated", file=sys.stderr)
    sys.exit(ExitCode.TERMINATED)


def _progress(result: Result, done: int, total: int) -> None:
    """One line on stderr for each combination that took time."""
    if result.seconds < 1:
        return
    compiled = f"{result.compiled_now} kernels compiled in {result.seconds:.1f} s"
    print(f"[{done}/{total}] {result.combination}: {compiled}", file=sys.stderr)
