"""``gpucheck run``: starts the ranks, shows them at work, and ends with the verdict."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpucheck.cli.options import (
    AcceptOption,
    CandidateOption,
    CaseOption,
    CheckFileOption,
    ChecksOption,
    DeviceOption,
    EngineOption,
    ExitCodesOption,
    ExpectGpusOption,
    JsonOption,
    JudgeOption,
    LibraryOption,
    NodeVerdictOption,
    OwnKernelOption,
    PrecisionOption,
    ProblemOption,
    ReferenceOption,
    RuleOption,
    VerboseOption,
    WriteOption,
    check_folder,
    check_seconds,
    check_sources,
    pair_options,
    require,
    split,
    time_span,
)
from gpucheck.cli.run_folders import new_folder
from gpucheck.model.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from gpucheck.cli.present import Output
    from gpucheck.launch.torchrun import Ending
    from gpucheck.library.copies import LibraryCopy
    from gpucheck.library.engines.engine_option import EngineSource
    from gpucheck.library.library_option import Source
    from gpucheck.model.check_source import CheckSource
    from gpucheck.model.plan import Plan
    from gpucheck.plan.scenario import Scenario

WAIT_FOR_NODES = 30.0  # s that node 0 waits for the last records of other nodes
WAIT_AFTER_FAILURE = 5.0  # s, where it did not end by itself


def run(
    context: typer.Context,
    scenario: Annotated[
        str | None,
        typer.Argument(help="Built-in scenario or TOML file.", show_default="gate on GPUs, smoke on the CPU"),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks on this node.", show_default="one a GPU; 1 without GPUs")
    ] = None,
    checks: ChecksOption = None,
    case: CaseOption = None,
    placement: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Run every case under this placement (see `gpucheck list`).",
            show_default="the scenario's",
        ),
    ] = None,
    process_group: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Run every case with it: none or initialised.", show_default="the scenario's"
        ),
    ] = None,
    check_file: CheckFileOption = None,
    problem: ProblemOption = None,
    candidate: CandidateOption = None,
    precision: PrecisionOption = None,
    reference: ReferenceOption = "auto",
    own_kernel: OwnKernelOption = False,
    rule: RuleOption = None,
    library: LibraryOption = None,
    engine: EngineOption = None,
    patch: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Test a copy of the library with this diff; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all inputs.", show_default="the scenario's")] = None,
    device: DeviceOption = "auto",
    expect_gpus: ExpectGpusOption = None,
    repeat: Annotated[
        int | None,
        typer.Option(metavar="N", help="Times that each rank runs every case.", show_default="the scenario's"),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Repeat all cases for this time: 90s, 10m or 2h.", show_default="once"),
    ] = None,
    isolate: Annotated[
        str, typer.Option(metavar="WHAT", help="One process per rank (rank), or one per case on each rank (case).")
    ] = "rank",
    debug: Annotated[
        bool, typer.Option("--debug", help="Wait for every launch, and compile the assertions inside kernels.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(help="Time limit of the whole run, in seconds.", show_default="the scenario's")
    ] = None,
    case_timeout: Annotated[
        float | None,
        typer.Option(help="Time limit of one case on one rank, in seconds.", show_default="the scenario's"),
    ] = None,
    experiments: Annotated[
        float | None,
        typer.Option(
            help="Seconds a rank may retry failed cases under changed conditions; 0: none.",
            show_default="the scenario's",
        ),
    ] = None,
    bench: Annotated[
        bool,
        typer.Option("--bench", help="Also benchmark: time, TFLOP/s, GB/s, share of ceilings, ratio to torch."),
    ] = False,
    canary: Annotated[
        bool | None,
        typer.Option(
            "--canary/--no-canary",
            help="Add a case that is wrong on purpose and must be caught.",
            show_default="the scenario's",
        ),
    ] = None,
    accept: AcceptOption = None,
    judge: JudgeOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder for the run.", show_default="runs/MMDD-HHMMSS")
    ] = None,
    json_file: JsonOption = None,
    write: WriteOption = None,
    node_verdict: NodeVerdictOption = None,
    exit_codes: ExitCodesOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the verdict only.")] = False,
    verbose: VerboseOption = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Exit codes for `git bisect run`: 0, 1, 125 if not buildable, else 128.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and stop.")] = False,
    nnodes: Annotated[int, typer.Option(min=1, help="Nodes, each with the same command.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="This node's number, from 0.")] = 0,
    rdzv_endpoint: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the nodes meet: host and port of node 0.")
    ] = "",
    rdzv_id: Annotated[str, typer.Option(help="torchrun's rendezvous id.")] = "gpucheck",
    rdzv_backend: Annotated[str, typer.Option(help="torchrun's rendezvous backend.")] = "c10d",
) -> None:
    """Run kernels on every rank, judge every output, and say which rank, kernel and region is wrong."""
    from gpucheck.launch.early_torchrun import begin, likely_ranks

    early = None
    if not dry_run and nnodes == 1:  # torchrun orders nodes of one host by when their processes start
        early = context.with_resource(begin(likely_ranks(device, nproc), out or Path("runs"), debug=debug))

    from rich.console import Console

    from gpucheck.cli import exit_codes as schemes
    from gpucheck.cli.present import Output
    from gpucheck.launch import join_run
    from gpucheck.launch.gpus import choose
    from gpucheck.launch.torchrun import Rendezvous, launch
    from gpucheck.library.engines.engine_option import named_engines, parse_engines, resolve_engines, served_with
    from gpucheck.library.library_option import parse_source
    from gpucheck.library.patches import patched_files, write_patched
    from gpucheck.model.plan import ISOLATION, JUDGE
    from gpucheck.plan.accepted_file import read_files
    from gpucheck.plan.bind import build, judged_by, this_machine
    from gpucheck.plan.default_cases import implied
    from gpucheck.plan.scenario import find, load
    from gpucheck.plan.scenario_conditions import MOST_REPEATS
    from gpucheck.plan.select import of_engines, select
    from gpucheck.records.live import Follower
    from gpucheck.records.run_folder import write_json
    from gpucheck.report.progress import Progress

    rendezvous = Rendezvous(nnodes, node_rank, rdzv_endpoint, rdzv_id, rdzv_backend)
    rendezvous.check()
    schemes.check(exit_codes)
    if exit_codes and bisect:
        raise UsageError("--exit-codes and --bisect both choose the exit codes: give one of them")
    check_seconds("--timeout", timeout)
    check_seconds("--case-timeout", case_timeout)
    check_seconds("--experiments", experiments, none=True)
    soak = time_span("--duration", duration) if duration is not None else 0.0
    if timeout is not None and timeout <= soak:
        raise UsageError(f"--timeout {timeout:g} ends the run before --duration {duration} is up; leave --timeout out")
    if isolate not in ISOLATION:
        raise UsageError(f"--isolate is {isolate!r}, expected one of {', '.join(ISOLATION)}")
    if judge is not None and judge not in JUDGE:
        raise UsageError(f"--judge is {judge!r}, expected one of {', '.join(JUDGE)}")
    if repeat is not None and not 1 <= repeat <= MOST_REPEATS:
        raise UsageError(f"--repeat is {repeat}, expected 1 to {MOST_REPEATS}")
    if checks and not split(checks):
        raise UsageError("--checks names no check")
    output = Output(json_file, write or [], node_verdict, exit_codes, verbose, quiet)
    accepted = read_files(accept or []) if node_rank == 0 else []
    source, engine_sources = parse_source(library), parse_engines(engine or [])
    pair = pair_options(precision, reference, own_kernel, rule)
    given, offered = check_sources(check_file, problem, candidate, pair)
    unselected = load(find(scenario), seed) if scenario else implied(given, seed) if given else None
    made_for_gpus = unselected.made_for_gpus if unselected else ""
    choice = choose(device, nproc, expected=expect_gpus, made_for_gpus=made_for_gpus)
    kind, count = choice.device, choice.nproc
    if unselected is None:
        unselected = load(find("gate" if kind == "cuda" else "smoke"), seed)
    chosen = select(unselected, split(checks), case or [], placement, process_group, repeat)
    engine_asked = any(source.path or source.release for source in engine_sources)
    chosen = of_engines(chosen, named_engines(engine_sources), asked=engine_asked)
    chosen = replace(chosen, bench=chosen.bench or bench)
    if chosen.screen and nnodes > 1:
        raise UsageError("a scenario with screen = SECONDS runs on one node; run gpucheck screen on each node instead")
    if canary is not None:
        chosen = replace(chosen, canary=canary)
    patches = [Path(os.path.abspath(name)) for name in patch or []]
    if dry_run:
        _show_plan(chosen, kind, count, nnodes)
        return
    if node_rank == 0:
        output.check(out)
        check_folder("--out", out or Path("runs"), new=out is not None)
    require("torch", "triton")
    console = Console(stderr=output.takes_stdout)
    engine_copies = resolve_engines(engine_sources) if any(step.conditions.engine for step in chosen.steps) else []
    engines = [each.planned() for each in engine_copies]
    served, release = served_with(source, engine_copies)
    copy = _library(served, chosen, kind, given, named=bool(library or patches), for_git=bisect)
    copy = replace(copy, origin=release) if copy and release else copy
    if node_rank:
        joined = join_run.join(rendezvous, copy, patches, choice, out, _fresh_folder, engines)
        ending = launch(joined.plan, joined.folder, rendezvous, lambda: False, joined.client.poll, early)
        joined.client.close(ending.code)
        raise typer.Exit(join_run.exit_code(joined, ending))
    patched = patched_files(copy.package, patches) if copy else {}
    folder = new_folder(out)
    if copy and patched:
        copy = write_patched(copy, patched, folder / "library")
    decided = judge or judged_by(chosen)
    again = {
        "--placement": placement,
        "--process-group": process_group,
        "--repeat": None if repeat is None else str(repeat),
        "--case-timeout": None if case_timeout is None else f"{case_timeout:g}",
        "--isolate": None if isolate == "rank" else isolate,
        "--debug": "" if debug else None,
        "--bench": "" if bench else None,
        "--canary": "" if canary else None,
        "--no-canary": "" if canary is False else None,
        "--judge": decided if judge or decided == "engine" else None,
        **pair.options,
    }
    plan = build(
        chosen,
        copy,
        environment=this_machine(copy.package if copy else None),
        device=kind,
        nproc=count,
        nnodes=nnodes,
        command=_command(chosen, given, source, engine_sources, kind, count, again, patches, accept or []),
        timeout=timeout,
        case_timeout=case_timeout,
        experiments=experiments,
        duration=soak,
        isolate=isolate,
        debug=debug,
        patches=[str(patch) for patch in patches],
        check_sources=[*given, *offered],
        accepted=accepted,
        engines=engines,
        judge=decided,
    )
    write_json(folder / "plan.json", plan.to_json())
    if kind == "cpu" and not quiet:
        console.print(
            f"no GPU is checked by this run ({choice.why}): Triton's interpreter runs the kernels on the CPU",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    follower = Follower(folder, plan.world_size, plan.must_fail)
    with (
        join_run.server(rendezvous, plan, folder) as server,
        Progress(plan, follower, console, quiet=quiet) as progress,
    ):
        watch = _Watch(plan, progress)
        ending = launch(plan, folder, rendezvous, watch, server.poll if server else None, early)
        others = server.finish(WAIT_FOR_NODES if ending.code == 0 else WAIT_AFTER_FAILURE) if server else []
        progress()
    if plan.screen and not ending.signal:
        _screen(folder, plan, console, quiet=quiet)
    trouble = _close(folder, plan, ending, [node.to_json() for node in others], watch.software or _software(plan))
    if trouble:
        typer.echo(f"gpucheck: {trouble}; the report holds what the ranks could write", err=True)
    _finish(folder, ending, console, output, for_git=bisect)


def _screen(folder: Path, plan: Plan, console: Console, *, quiet: bool) -> None:
    """Screens the GPUs, which the ranks have left, into a folder of the run."""
    from gpucheck.cli.screen import screen_gpus
    from gpucheck.model.screened import FOLDER

    (folder / FOLDER).mkdir()
    command = ["gpucheck", "screen", "--nproc", str(plan.nproc), "--seconds", f"{plan.screen:g}"]
    show = (lambda text: None) if quiet else partial(console.print, highlight=False, markup=False)
    screen_gpus(folder / FOLDER, plan.device, plan.nproc, plan.seed, plan.screen, command, progress=show)


def _library(
    source: Source, scenario: Scenario, device: str, given: list[CheckSource], *, named: bool, for_git: bool
) -> LibraryCopy | None:
    """The library under test; None where no case needs one and no option names one: nothing is looked up then.

    Args:
        given: where checks come from that were brought along.
        named: ``--library`` or ``--patch`` is given.
        for_git: see ``--bisect``.
    """
    from gpucheck.library.library_option import resolve
    from gpucheck.plan.bind import needing_library

    needing = needing_library(scenario, device)
    if not needing and not named:
        return None
    try:
        return _testable(source) if for_git else resolve(source)
    except InfrastructureError as error:
        own = [name for item in given for name in item.checks if name in needing]
        if not own:
            raise
        words = f"{', '.join(own)}; a check that calls nothing of the library says needs_library = False"
        raise InfrastructureError(f"{error}\n  needed by   {words}") from None


def _testable(source: Source) -> LibraryCopy:
    """The library, where a commit without a usable one is no error of the user: git is to try another."""
    from gpucheck.cli.git_codes import UNTESTABLE
    from gpucheck.library.library_option import SourceKind, resolve

    try:
        return resolve(source)
    except UsageError as error:
        if source.kind is not SourceKind.PATH or not (source.path and source.path.is_dir()):
            raise
        typer.echo(f"gpucheck: {error}", err=True)
        raise typer.Exit(UNTESTABLE) from None


def _show_plan(scenario: Scenario, device: str, nproc: int, nnodes: int) -> None:
    from gpucheck.plan.bind import bound_steps, with_company

    steps = with_company(bound_steps(scenario, device), nproc * nnodes)
    for step in steps:
        words = ["optional"] * step.optional + ["must fail"] * (step.expect is not None)
        words += [step.inapplicable] * bool(step.inapplicable)
        typer.echo(step.label + (f": {', '.join(words)}" if words else ""))
    ranks = nproc * nnodes
    typer.echo(f"{len(steps)} cases of {scenario.name} on {ranks} rank(s), {device}, seed {scenario.seed}")


def _command(
    scenario: Scenario,
    given: list[CheckSource],
    source: Source,
    engines: list[EngineSource],
    device: str,
    nproc: int,
    again: dict[str, str | None],
    patches: list[Path],
    accept: list[str],
) -> list[str]:
    """What makes the run again, from any folder.

    Args:
        again: options to repeat, with their values; "" for those that have none, None for those that were not given.
    """
    from gpucheck.library.library_option import SourceKind

    command = ["gpucheck", "run"]
    if not scenario.implied:
        command.append(scenario.name if not scenario.path else str(scenario.path))
    command += [word for item in given for word in item.options]
    command += ["--nproc", str(nproc), "--seed", str(scenario.seed)]
    if source.kind is not SourceKind.DEFAULT:
        command += ["--library", str(source)]
    command += [word for engine in engines for word in ("--engine", engine.text)]
    if device == "cpu":
        command += ["--device", "cpu"]
    for option, value in again.items():
        command += [option, *filter(None, [value])] if value is not None else []
    command += [part for patch in patches for part in ("--patch", str(patch))]
    return command + [part for name in accept for part in ("--accept", os.path.abspath(name))]


def _fresh_folder(out: Path | None) -> Path:
    """Makes the run folder of a further node, which is not the one of node 0."""
    check_folder("--out", out or Path("runs"), new=out is not None)
    return new_folder(out)


class _Watch:
    """What is done while the ranks work: they are shown, and the end of the command is prepared.

    Attributes:
        software: what was there when all ranks had ended, for comparison; None while they have not.
    """

    def __init__(self, plan: Plan, show: Callable[[], bool]) -> None:
        self.software: dict[str, Any] | None = None
        self._plan, self._show, self._loaded = plan, show, False

    def __call__(self) -> bool:
        """Says whether all ranks have ended; called about ten times a second."""
        from gpucheck.cli import present

        ended = self._show()
        if not self._loaded:
            self._loaded = True
            present.load()
        if ended and self.software is None:
            self.software = _software(self._plan)  # torchrun takes a while to end too
        return ended


def _software(plan: Plan) -> dict[str, Any]:
    from gpucheck.host.software import software

    return software(Path(plan.library["package"]) if plan.has_library else None)


def _close(folder: Path, plan: Plan, ending: Ending, others: list[dict[str, Any]], software: dict[str, Any]) -> str:
    """Writes how the run ended, with what changed in the software meanwhile; says what kept it from being written.

    Args:
        software: what is there now.
    """
    from gpucheck.host.software import changes
    from gpucheck.records.run_folder import write_json

    if plan.candidates and not _holds(folder / "plan.json", plan):  # a candidate had it in reach
        write_json(folder / "plan.json", plan.to_json())
    outcome: dict[str, Any] = {**vars(ending), "changes": changes(plan.environment["software"], software)}
    if others:
        outcome["nodes"] = others
    try:
        write_json(folder / "outcome.json", outcome)
    except OSError as error:
        return f"{folder / 'outcome.json'} cannot be written: {error.strerror}"
    return ""


def _holds(path: Path, plan: Plan) -> bool:
    """Whether a file is the one that the plan was written to."""
    from gpucheck.records.run_folder import json_text

    try:
        return path.read_text(encoding="utf-8") == json_text(plan.to_json())
    except (OSError, ValueError):
        return False


def _finish(folder: Path, ending: Ending, console: Console, output: Output, *, for_git: bool) -> None:
    """Shows the report and ends with the exit code of the verdict or of the interruption."""
    from gpucheck.cli import git_codes
    from gpucheck.records.run_folder import read_run

    presented = output.present(folder, console, announced=True)
    if presented.unchecked and not output.quiet:
        on_cpu = presented.report.plan.device == "cpu"
        about = ": the verdict is about arithmetic in Triton's interpreter" if on_cpu else ""
        console.print(presented.unchecked + about, highlight=False)
    if ending.timed_out:
        console.print(f"stopped after {ending.seconds:.0f} s, the limit of the whole run (--timeout)", highlight=False)
    if ending.signal:
        raise typer.Exit(128 + ending.signal)
    if for_git:
        raise typer.Exit(git_codes.code_of(read_run(folder), presented.conclusion))
    raise typer.Exit(output.exit_code(presented))
