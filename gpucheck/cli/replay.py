"""``gpucheck replay``: one case of a stored run once more, on one rank, with a close look at what is wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpucheck.cli.options import LibraryOption, check_folder, check_seconds, require
from gpucheck.model.errors import ExitCode, InfrastructureError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from gpucheck.library.copies import LibraryCopy
    from gpucheck.model.plan import Plan
    from gpucheck.records.run_folder import Run
    from gpucheck.tools.replay.closeup import Closeup

PIPED_WIDTH = 200  # columns where nobody's terminal sets a width


def replay(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    case: Annotated[
        str, typer.Argument(help="Case id; with its conditions in parentheses if several cases have this id.")
    ],
    rank: Annotated[
        int | None, typer.Option(min=0, help="Rank to look at.", show_default="the first that failed")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="New folder for tensors and a script that needs no gpucheck."),
    ] = None,
    library: LibraryOption = None,
    timeout: Annotated[
        float | None, typer.Option(help="Time limit of the whole replay, in seconds.", show_default="the run's")
    ] = None,
) -> None:
    """Run one case of a run again, exactly as it was, and show in detail what is wrong."""
    import shutil
    import tempfile

    from rich.console import Console

    from gpucheck import checks
    from gpucheck.launch.early_torchrun import begin
    from gpucheck.launch.torchrun import Rendezvous, launch
    from gpucheck.library.engines.engine_option import found_again
    from gpucheck.library.library_option import parse_source
    from gpucheck.library.recorded import find_recorded
    from gpucheck.model.record import Outcome
    from gpucheck.records.run_folder import read_run, write_json
    from gpucheck.tools.replay.closeup import show
    from gpucheck.tools.replay.replay_plan import find_rank, find_step, repeated

    check_seconds("--timeout", timeout)
    run = read_run(run_dir)
    if rank is not None:
        find_rank(run, 0, rank)
    step = find_step(run, case, rank)
    chosen = find_rank(run, step, rank)
    if save:
        check_folder("--save", save)
    checks.activate(run.plan.check_sources)
    _restore_environment(run.plan)
    early = context.with_resource(begin(run.plan.nproc, run_dir, debug=run.plan.debug))
    _require_machine(run.plan)
    if library and not run.plan.has_library:
        raise UsageError(f"no case of {run_dir} needs a library, and it had none: leave --library out")
    source = parse_source(library) if library else None
    copy = find_recorded(run.plan.library, run_dir, source) if run.plan.has_library else None
    recorded = run.plan.engine(run.plan.steps[step].conditions.engine)
    engine = found_again(recorded) if recorded else None
    plan = repeated(run.plan, step, chosen, copy, save=save is not None, timeout=timeout, engine=engine)
    folder = Path(tempfile.mkdtemp(prefix="gpucheck-replay-"))
    kept = False
    try:
        write_json(folder / "plan.json", plan.to_json())
        (folder / "records").mkdir()
        ending = launch(plan, folder, Rendezvous(), lambda: False, early=early)
        closeup = _closeup(run, step, chosen, copy, folder)
        console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
        show(closeup, console)
        kept = closeup.now.outcome in (Outcome.LOST, Outcome.HARNESS)
        if kept:
            console.print(f"\nkept      {folder}: the case gave no result, the logs there say more", soft_wrap=True)
        if save:
            _save(closeup, plan, copy, folder, save, console)
        if ending.signal:
            raise typer.Exit(128 + ending.signal)
        raise typer.Exit(exit_code(closeup))
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def exit_code(closeup: Closeup) -> ExitCode:
    """PASS or FAIL where the very case of the run was judged, else INCONCLUSIVE."""
    from gpucheck.model.record import Outcome

    if closeup.same_inputs is False:
        return ExitCode.INCONCLUSIVE
    if closeup.now.outcome is Outcome.PASS:
        return ExitCode.PASS
    return ExitCode.FAIL if closeup.now.outcome.failed else ExitCode.INCONCLUSIVE


def _restore_environment(plan: Plan) -> None:
    from gpucheck.host.env_vars import restore

    recorded = plan.environment.get("variables")
    if recorded is not None:
        restore(recorded, same_host=plan.environment.get("host") == os.uname().nodename)


def _require_machine(plan: Plan) -> None:
    """Raises InfrastructureError where this machine cannot hold the ranks of a node of the run."""
    from gpucheck.launch import gpus

    require("torch", "triton")
    if plan.device == "cpu":
        return
    found = gpus.find()
    if found.problem or len(found.gpus) < plan.nproc:
        here = found.problem or f"{len(found.gpus)} are visible here"
        raise InfrastructureError(
            f"the run had {plan.nproc} GPU(s) a node, {here}: a replay needs as many.\n"
            "  try  a machine like that of the run, or the case by itself: gpucheck run --case"
        )


def _closeup(run: Run, step: int, rank: int, copy: LibraryCopy | None, folder: Path) -> Closeup:
    from gpucheck.records.replay_files import read_detail
    from gpucheck.records.run_folder import read_run
    from gpucheck.tools.replay.closeup import Closeup

    again = read_run(folder)
    first = rank // run.plan.nproc * run.plan.nproc
    others = [other for other in range(first, first + run.plan.nproc) if other != rank]
    was, now = run.records[(step, rank)], again.records[(0, rank)]
    worst, notes = read_detail(folder)
    return Closeup(
        label=run.plan.steps[step].label,
        was=was,
        now=now,
        others={other: again.records[(0, other)].outcome for other in others},
        worst=worst,
        facts=_facts(run, copy),
        notes=[*_changes(run.plan, copy), *_other_device(was.device, now.device), *notes],
    )


def _facts(run: Run, copy: LibraryCopy | None) -> list[str]:
    plan, software = run.plan, run.plan.environment.get("software", {})
    versions = [f"{name} {(software.get(name) or {}).get('version', '?')}" for name in ("torch", "triton")]
    made = ", ".join([str(plan.environment.get("host", "an unknown host")), *versions, f"seed {plan.seed}"])
    facts = [f"run {plan.id} of {plan.scenario} ({made}) in {run.folder}"]
    if copy:
        library = f"triton_kernels {plan.library['name']} ({plan.library['origin']})"
        facts.append(f"{library}, the content of the run, from {copy.package}")
    return facts


def _changes(plan: Plan, copy: LibraryCopy | None) -> list[str]:
    """What is not as it was when the run was made."""
    from gpucheck.host.software import software

    was, now = plan.environment.get("software", {}), software(copy.package if copy else None)
    notes = []
    for name in ("python", "torch", "triton"):
        before, after = was.get(name), now.get(name)
        if before and before != after:
            notes.append(f"{name} is not as in the run: was {_version_text(before)}, is {_version_text(after)}")
    if "variables" not in plan.environment:
        notes.append("the run holds no environment variables; those of this process were used")
    return notes


def _version_text(found: Any) -> str:
    if isinstance(found, dict):
        return f"{found.get('version')} with fingerprint {found.get('fingerprint')}"
    return str(found or "not installed")


def _other_device(was: str, now: str) -> list[str]:
    return [f"the run had a {was} here, this is a {now}"] if was and now and was != now else []


def _save(closeup: Closeup, plan: Plan, copy: LibraryCopy | None, folder: Path, save: Path, console: Console) -> None:
    """Fills the folder that was asked for and says what is in it."""
    from gpucheck.tools.replay.bundle import write_bundle

    for line in write_bundle(closeup, plan, copy, folder, save):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
