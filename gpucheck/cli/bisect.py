"""``gpucheck bisect``: which commit, release or patch made a case fail, or fixed it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gpucheck.cli.options import (
    CandidateOption,
    CheckFileOption,
    EngineOption,
    LibraryOption,
    ProblemOption,
    check_folder,
    check_seconds,
    check_sources,
)
from gpucheck.model.errors import ExitCode, InfrastructureError, UsageError

if TYPE_CHECKING:
    from gpucheck.plan.scenario import Scenario
    from gpucheck.tools.bisect.saved_search import Find, State
    from gpucheck.tools.bisect.signature import Answer
    from gpucheck.tools.bisect.sources import AnySource, Commits, EngineReleases, Packages, Releases
    from gpucheck.tools.bisect.sources.base import Candidate
    from gpucheck.tools.bisect.target import Target


def bisect(
    run_dir: Annotated[
        Path | None, typer.Argument(help="A stored run that holds the failure.", show_default=False)
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="The case that fails.", show_default="the first finding's")
    ] = None,
    repo: Annotated[Path | None, typer.Option(metavar="DIR", help="Search the commits of this git checkout.")] = None,
    path: Annotated[str, typer.Option(help="Folder of the library in the repository.")] = "",
    good: Annotated[str | None, typer.Option(metavar="REV", help="A good commit.")] = None,
    bad: Annotated[str | None, typer.Option(metavar="REV", help="A bad commit.")] = None,
    wheel: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Search the releases of a package that contains the library, of an engine whose case fails, "
            "or of one that runs import.",
        ),
    ] = None,
    package: Annotated[
        str | None, typer.Option(metavar="NAME", help="As --wheel, but the library under test stays the same.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="VERSION", help="The oldest version.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="VERSION", help="The newest version.")] = None,
    patches: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Search a series of patches for those that make the difference.")
    ] = None,
    find: Annotated[
        str | None,
        typer.Option(metavar="bad|fix", help="What to find; fault is bad too.", show_default="bad; of patches, fix"),
    ] = None,
    bits: Annotated[bool, typer.Option("--bits", help="Search for changed output bits instead of a failure.")] = False,
    repeat: Annotated[
        int | None, typer.Option(min=1, help="Runs of each candidate.", show_default="as the failure rate asks for")
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="Without a stored run: the scenario of the case.")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks.", show_default="the stored run's")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu.", show_default="the stored run's, else auto")] = None,
    placement: Annotated[str | None, typer.Option(metavar="NAME", help="Placement of the case.")] = None,
    process_group: Annotated[
        str | None, typer.Option(metavar="NAME", help="none or initialised, for the case.")
    ] = None,
    experiments: Annotated[
        float | None,
        typer.Option(
            help="Seconds a rank may retry the failed case under changed conditions, to tell causes apart.",
            show_default="none",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the inputs.", show_default="the stored run's")
    ] = None,
    check_file: CheckFileOption = None,
    problem: ProblemOption = None,
    candidate: CandidateOption = None,
    library: LibraryOption = None,
    engine: EngineOption = None,
    timeout: Annotated[
        float | None, typer.Option(help="Time limit of one run, in seconds.", show_default="the scenario's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="New folder of the search.", show_default="runs/bisect-MMDD-HHMMSS"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="STATE", help="Continue the search of this state file.")
    ] = None,
) -> None:
    """Find the first bad (or fixed) commit or release, or the patches that fix a case."""
    given = _given(locals())

    from gpucheck.tools.bisect.saved_search import load

    if resume is not None and given:
        raise UsageError("--resume continues a search as it was started; leave out all other options")
    state = load(resume) if resume is not None else _begin(given)
    _search(state)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were set, but for ``resume``."""
    given = {name: value for name, value in options.items() if name != "resume" and value is not False}
    return {name: value for name, value in given.items() if value == 0 or value}


def _begin(given: dict[str, Any]) -> State:
    """The state of a new search; nothing is written before it is known that it can begin."""
    from gpucheck.launch.gpus import choose
    from gpucheck.plan.bind import needing_library
    from gpucheck.tools.bisect.saved_search import Find, State
    from gpucheck.tools.bisect.sources import EngineReleases, own_library

    kinds = [name for name in _ENDS if name in given]
    if len(kinds) != 1:
        raise UsageError("give one of --repo DIR, --wheel NAME, --package NAME and --patches DIR: what to search in")
    find = given.get("find") or ("fix" if kinds == ["patches"] else "bad")
    find = "bad" if find == "fault" else find
    if find not in (Find.BAD.value, Find.FIX.value):
        raise UsageError(f"--find is {find!r}, expected bad (or fault) or fix")
    _check_options(kinds[0], given)
    target = _target(given)
    scenario = _scenario(target)
    device = choose(target.device, target.nproc, made_for_gpus=scenario.made_for_gpus).device
    target = replace(target, timeout=given.get("timeout", scenario.timeout))
    out = given.get("out") or Path("runs") / time.strftime("bisect-%m%d-%H%M%S")
    check_folder("--out", out)
    work = out.absolute()
    own_engines = {step.conditions.engine for step in scenario.steps}
    needs_library = bool(needing_library(scenario, device))
    source, candidates = _source(kinds[0], given, Find(find), own_engines, needs_library=needs_library)
    if isinstance(source, EngineReleases):
        target = replace(target, engines=_other_engines(source.name, target, given))
    work.mkdir(parents=True, exist_ok=True)
    state = State(work, own_library(source, work), target, Find(find), "bits" in given, given.get("repeat"), candidates)
    state.save()
    return state


_ENDS = {"repo": ("path", "good", "bad"), "wheel": ("first", "last"), "package": ("first", "last"), "patches": ()}
"""What is searched in, and the options that go with it."""
_SPELT = {"first": "from", "last": "to"}
OWN_LIBRARY = "--library does not go with {}: each is a library of its own"


def _check_options(kind: str, given: dict[str, Any]) -> None:
    for name in dict.fromkeys(name for names in _ENDS.values() for name in names):
        if name in given and name not in _ENDS[kind]:
            raise UsageError(f"--{_SPELT.get(name, name)} does not go with --{kind}")
    if kind == "repo" and "library" in given:
        raise UsageError(OWN_LIBRARY.format("a commit"))
    for name in ("first", "last") if kind in ("wheel", "package") else ():
        if name not in given:
            raise UsageError(f"--{kind} needs --from VERSION and --to VERSION, the ends of the search")


def _target(given: dict[str, Any]) -> Target:
    """What each step runs: as the stored run did, changed by what the options say."""
    from gpucheck.launch.gpus import DEVICES, choose
    from gpucheck.library.engines import MODULES
    from gpucheck.library.engines.engine_option import parse_engines
    from gpucheck.tools.bisect.target import SOURCE_OPTIONS, Target, from_run

    cases, bits = given.get("case", []), "bits" in given
    names = ("scenario", "nproc", "device", "placement", "process_group", "experiments", "seed")
    options = {name: given[name] for name in names if name in given}
    brought = {option: given.get(option.removeprefix("--").replace("-", "_"), []) for option in SOURCE_OPTIONS}
    if "engine" in given:
        options["engines"] = tuple(source.text for source in parse_engines(given["engine"]))
    if any(brought.values()):
        options["sources"] = tuple(
            word for option, files in brought.items() for file in files for word in (option, os.path.abspath(file))
        )
    if given.get("device", "auto") not in DEVICES:
        raise UsageError(f"--device is {given['device']!r}, expected auto, cuda or cpu")
    check_seconds("--timeout", given.get("timeout"))
    check_seconds("--experiments", given.get("experiments"), none=True)
    if "run_dir" in given:
        stored = from_run(given["run_dir"], cases, bits=bits, experiments=given.get("experiments", 0.0))
        return replace(stored, **options)
    if not cases:
        raise UsageError("say what fails: the folder of a stored run, or --case ID with --scenario NAME")
    device = given.get("device", "auto")
    usual = ""
    if "sources" not in options and "scenario" not in options:
        usual = "gate" if choose(device, given.get("nproc")).device == "cuda" else "smoke"
        usual = "serving" if any(case.startswith(f"{engine}_") for case in cases for engine in MODULES) else usual
    return Target(**{"scenario": usual, "device": device, **options, "cases": tuple(cases)})


def _scenario(target: Target) -> Scenario:
    """The cases as every run selects them; raises where no run could be made."""
    from gpucheck.plan.default_cases import implied
    from gpucheck.plan.scenario import find, load
    from gpucheck.plan.select import select

    named: dict[str, list[str]] = {}
    for option, file in zip(target.sources[::2], target.sources[1::2], strict=True):
        named.setdefault(option, []).append(file)
    brought, _ = check_sources(named.get("--check-file"), named.get("--problem"), named.get("--candidate"))
    cases = load(find(target.scenario), target.seed) if target.scenario else implied(brought, target.seed)
    return select(cases, [], target.cases, target.placement, target.process_group)


def _source(
    kind: str, given: dict[str, Any], find: Find, engines: Collection[str], *, needs_library: bool
) -> tuple[AnySource, list[Candidate]]:
    """What is searched in, and its candidates.

    Args:
        engines: those that cases of the search are of.
        needs_library: a case of the search calls the library.
    """
    from gpucheck.tools.bisect.engine import check_ends
    from gpucheck.tools.bisect.sources import Commits, Patches

    series: Commits | Releases | EngineReleases | Packages
    if kind == "repo":
        old, new = _commit_ends(given, find)
        series = Commits(os.path.abspath(given["repo"]), given.get("path", "").strip("/").removeprefix("./"), old, new)
    elif kind != "patches":
        series = _versions(given[kind], kind, given, engines, needs_library=needs_library)
    else:
        library = _library(given, needs_library=needs_library)
        if library is None:
            cases = given.get("run_dir") or ", ".join(given["case"])
            raise UsageError(f"no case of {cases} needs a library that patches could change")
        return Patches.in_folder(given["patches"], library), []
    candidates = series.candidates()
    check_ends(candidates)
    return series, candidates


def _versions(
    name: str, kind: str, given: dict[str, Any], engines: Collection[str], *, needs_library: bool
) -> Releases | EngineReleases | Packages:
    """Releases of the engine that is tested, else of a distribution that carries the library, else of what is imported.

    Releases of an engine have the library that each is served with, but where one is named or is to stay the same.
    """
    from gpucheck.tools.bisect.sources import EngineReleases, Packages, Releases

    if name.lower() in engines:
        kept = "library" in given or kind == "package"
        library = str(_library(given, needs_library=True)) if kept else ""
        return EngineReleases(name.lower(), given["first"], given["last"], library)
    releases = Releases(name, given["first"], given["last"])
    if kind == "package" or not releases.carries():
        return Packages(name, releases.old, releases.new, str(_library(given, needs_library=needs_library) or ""))
    if "library" in given:
        raise UsageError(OWN_LIBRARY.format(f"a release of {name}"))
    return releases


def _other_engines(name: str, target: Target, given: dict[str, Any]) -> tuple[str, ...]:
    """The engines that runs have beside the one whose releases are searched."""
    from gpucheck.library.engines.engine_option import named_engines, parse_engines

    of = {text: named_engines(parse_engines([text])) for text in target.engines}
    if twice := next((text for text, names in of.items() if name in names and "engine" in given), ""):
        raise UsageError(f"--engine {twice} does not go with a search of {name}: each release is an engine of its own")
    return tuple(text for text, names in of.items() if name not in names)


def _commit_ends(given: dict[str, Any], find: Find) -> tuple[str, str]:
    """The older and the newer end; the newer one is HEAD where it is left out."""
    old, new = ("good", "bad") if find.value == "bad" else ("bad", "good")
    if old not in given:
        raise UsageError(f"--find {find.value} in a repository needs --{old} REV, an older commit that is {old}")
    return given[old], given.get(new, "HEAD")


def _library(given: dict[str, Any], *, needs_library: bool) -> Path | None:
    """The library that patches change, or that runs with each version of a package; None where no case needs one."""
    from gpucheck.library.engines.engine_option import parse_engines, resolve_engines, served_with
    from gpucheck.library.library_option import parse_source, resolve
    from gpucheck.records.run_folder import read_plan

    if "library" in given or ("run_dir" not in given and needs_library):
        engines = resolve_engines(parse_engines(given["engine"])) if "engine" in given else []
        return resolve(served_with(parse_source(given.get("library")), engines)[0]).root
    if "run_dir" not in given:
        return None
    plan = read_plan(given["run_dir"])
    if not plan.has_library:
        return None
    tested = plan.library
    copy = resolve(parse_source(f"path:{tested['package']}"))
    if copy.content != tested["content"]:
        raise UsageError(f"{copy.package} is no longer what {given['run_dir']} tested; name a copy with --library")
    return copy.root


def _search(state: State) -> NoReturn:
    """Searches to the end, or says how to go on."""
    from gpucheck.tools.bisect.engine import run_search
    from gpucheck.tools.bisect.run_once import take
    from gpucheck.tools.bisect.search_text import report
    from gpucheck.tools.bisect.session import Session

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _Teller() as teller:
            outcome = run_search(Session(state, take, teller))
    except KeyboardInterrupt as interrupt:
        typer.echo(f"interrupted after {state.runs} runs; go on with: gpucheck bisect --resume {state.file}", err=True)
        raise typer.Exit(int(str(interrupt) or ExitCode.INTERRUPTED)) from None
    except InfrastructureError:
        typer.echo(f"what was seen is kept; go on with: gpucheck bisect --resume {state.file}", err=True)
        raise
    typer.echo("\n" + "\n".join(report(state, outcome)))
    raise typer.Exit(ExitCode.PASS if outcome.exact else ExitCode.INCONCLUSIVE)


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(128 + number)


class _Teller:
    """Prints a line for each candidate, and on a terminal what is running."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._status = self._console.status("") if self._console.is_terminal else None

    def __enter__(self) -> _Teller:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def running(self, candidate: Candidate, number: int) -> None:
        if self._status:
            from rich.text import Text

            self._status.update(Text(f"{candidate.name} {candidate.title}: run {number}"))

    def decided(self, candidate: Candidate, answer: Answer, words: str) -> None:
        name = f"{candidate.name}  {candidate.title}".rstrip()
        self._console.print(f"{answer.value:<5} {name}\n      {words}", markup=False, soft_wrap=True)
