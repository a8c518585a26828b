"""``gpucheck selftest``: plants faults in real runs and shows whether their reports find them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpucheck.cli.options import DeviceOption, JsonOption, LibraryOption, check_folder, require, split
from gpucheck.model.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from gpucheck.tools.selftest.planted_runs import Done, SelfTest, Summary

SCREEN_SECONDS = 2.0  # of each GPU, of the screen with planted faults


def selftest(
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks.", show_default="one a GPU; 2 without GPUs")] = None,
    faults: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these faults (comma-separated or repeated).", show_default="all"),
    ] = None,
    library: LibraryOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="New folder for the runs.", show_default="runs/selftest-MMDD-HHMMSS"),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Plant every fault that this machine can show, on each rank in turn, and check that the reports find it."""
    from gpucheck.cli.present import check_files, put_json
    from gpucheck.launch import gpus
    from gpucheck.library.library_option import parse_source, resolve
    from gpucheck.records.run_folder import json_text
    from gpucheck.tools.screen.planted_multiprocessors import PLANTS
    from gpucheck.tools.selftest.catalogue import choose
    from gpucheck.tools.selftest.planted_runs import SelfTest, Summary
    from gpucheck.tools.selftest.summary import figures, lines, to_json

    asked = split(faults)
    of_screen = [name for name in PLANTS if name in asked or not asked]
    of_runs = [name for name in asked if name not in PLANTS]
    chosen = choose(of_runs, beside=[*PLANTS]) if of_runs or not asked else ()
    if faults is not None and not split(faults):
        raise UsageError("--faults names no fault")
    choice = gpus.choose(device, nproc)
    kind, count = choice.device, choice.nproc
    if kind == "cpu" and nproc is None:
        count = 2
    check_files(json_file, [], out)
    folder = (out or Path("runs") / time.strftime("selftest-%m%d-%H%M%S")).absolute()
    check_folder("--out", folder)
    require("torch", "triton")
    copy = resolve(parse_source(library))
    folder.mkdir(parents=True, exist_ok=True)
    test = SelfTest(chosen, copy.package, kind, count, folder)
    names = [*(fault.name for fault in chosen), *of_screen]
    summary = Summary(kind, count, f"{copy.name} ({copy.content[:8]})", names, folder=str(folder))
    received = _work(test, summary, of_screen, quiet=json_file == "-")
    for line in lines(summary) if json_file != "-" else figures(summary):
        typer.echo(line, err=json_file == "-")
    if json_file:
        put_json(json_file, json_text(to_json(summary)))
    if received:
        raise typer.Exit(128 + received)
    if not summary.cells and not summary.problems and not summary.alarms:
        raise typer.Exit(ExitCode.NOTHING_RAN)
    raise typer.Exit(ExitCode.PASS if summary.right else ExitCode.FAIL)


def _work(test: SelfTest, summary: Summary, of_screen: list[str], *, quiet: bool) -> int:
    """Makes the runs and shows how far they have come; gives the signal that ended them early, or 0."""
    from gpucheck.host.processes import on_signals
    from gpucheck.tools.selftest.schedule import FaultRun

    received: list[int] = []

    def interrupted(number: int, _: object) -> None:
        received.append(number)
        test.stop(number)

    def began(run: FaultRun) -> None:
        faults = f": {len(run.wrong)} planted" if run.wrong else ""
        typer.echo(f"...  {run.name}{faults}", err=quiet)

    def ended(done: Done) -> None:
        wrong = sum(not cell.right for cell in done.found.cells if not cell.inapplicable)
        state = "ok " if not wrong and not done.found.alarms and not done.found.problems else "XX "
        detail = f", {wrong} faults not found as planted" if wrong else ""
        detail += f", {len(done.found.alarms)} false alarms" if done.found.alarms else ""
        typer.echo(f"{state}  {done.run.name}  {done.seconds:.0f} s{detail}", err=quiet)

    begin = time.monotonic()
    with on_signals(interrupted):
        test.run(summary, began, ended)
        if of_screen and not received:
            summary.planned += 1
            typer.echo(f"...  screen: {len(of_screen) * summary.ranks} planted", err=quiet)
            summary.done.append(done := _screened(of_screen, summary))
            ended(done)
    summary.seconds = time.monotonic() - begin
    return received[0] if received else 0


def _screened(names: list[str], summary: Summary) -> Done:
    """A screen with faulty multiprocessors planted on every rank, and what its stored run says of them."""
    from gpucheck.cli.screen import screen_gpus
    from gpucheck.diagnose.conclude import conclude
    from gpucheck.model.record import Outcome
    from gpucheck.records.run_folder import read_run
    from gpucheck.tools.screen.planted_multiprocessors import PLANTS, datapaths, plants, problems
    from gpucheck.tools.selftest.assess import Assessment, Cell
    from gpucheck.tools.selftest.planted_runs import Done
    from gpucheck.tools.selftest.schedule import FaultRun

    folder, begin = Path(summary.folder) / "screen", time.monotonic()
    folder.mkdir()
    planted = plants(names, summary.ranks)
    command = ["gpucheck", "screen"]
    screen_gpus(
        folder, summary.device, summary.ranks, 0, SCREEN_SECONDS, command, names=datapaths(names), plants=planted
    )
    run = read_run(folder)
    findings = conclude(run).findings
    records = {(str(run.plan.steps[step].case["datapath"]), rank): each for (step, rank), each in run.records.items()}
    found = Assessment()
    for plant in planted:
        record = records.pop((plant["path"], plant["rank"]), None)
        wrong = problems(plant, record, findings)
        name = next(name for name in names if PLANTS[name]["path"] == plant["path"])
        detected = record is not None and record.outcome.failed
        found.cells.append(Cell(name, str(plant["rank"]), detected, tuple(wrong)))
    found.clean = len(records)
    for (path, rank), record in records.items():
        if record.outcome is not Outcome.PASS:
            found.alarms.append(f"rank {rank}: {path}: {record.outcome.value} {record.message}")
    return Done(FaultRun("screen", "each", summary.device, summary.ranks, 0), time.monotonic() - begin, found)
