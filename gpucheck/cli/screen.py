"""``gpucheck screen``: runs exact data on every multiprocessor of every GPU, and says how sure a clean screen is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from gpucheck.cli.options import (
    DeviceOption,
    ExitCodesOption,
    ExpectGpusOption,
    JsonOption,
    NodeVerdictOption,
    VerboseOption,
    WriteOption,
    check_folder,
    check_seconds,
    require,
    split,
)
from gpucheck.model.errors import UsageError

SECONDS = 20.0
LONGEST = 86_400.0  # s, of --until without --seconds


def screen(
    seconds: Annotated[
        float | None,
        typer.Option(help="Time on each GPU, at most.", show_default="20; with --until as long as that takes"),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="GPUs to screen, from the first.", show_default="all; 1 without GPUs")
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Screen until a fault that shows in this share of tiles (1e-7) would have been seen with 99%.",
        ),
    ] = None,
    idle: Annotated[
        bool, typer.Option("--idle", help="Leave a GPU at once to any other process, and go on later.")
    ] = False,
    datapaths: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these datapaths (comma-separated or repeated).", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all operands.")] = 0,
    device: DeviceOption = "auto",
    expect_gpus: ExpectGpusOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder for the run.", show_default="runs/MMDD-HHMMSS")
    ] = None,
    json_file: JsonOption = None,
    write: WriteOption = None,
    node_verdict: NodeVerdictOption = None,
    exit_codes: ExitCodesOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the verdict only.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Run exact data on every multiprocessor of every GPU, name the one that is wrong, and say how sure a pass is."""
    from rich.console import Console

    from gpucheck.cli import exit_codes as schemes
    from gpucheck.cli.present import Output
    from gpucheck.cli.run_folders import new_folder
    from gpucheck.launch.gpus import choose
    from gpucheck.tools.screen.screening import datapath_names, tiles_for

    schemes.check(exit_codes)
    check_seconds("--seconds", seconds)
    if until is not None and not 0 < until < 1:
        raise UsageError(f"--until is {until:g}, expected a share of tiles above 0 and below 1, such as 1e-7")
    names, known = split(datapaths), datapath_names()
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--datapaths names {unknown[0]!r}, expected one of {', '.join(known)}")
    if datapaths is not None and not names:
        raise UsageError("--datapaths names no datapath")
    choice = choose(device, nproc, expected=expect_gpus)
    if idle and choice.device == "cpu":
        raise UsageError(f"--idle leaves a GPU to others, and there is none with {choice.why}")
    output = Output(json_file, write or [], node_verdict, exit_codes, verbose, quiet)
    output.check(out)
    check_folder("--out", out or Path("runs"), new=out is not None)
    require("torch", "triton")
    console = Console(stderr=output.takes_stdout)
    limit = seconds if seconds is not None else LONGEST if until else SECONDS
    command = ["gpucheck", "screen", "--nproc", str(choice.nproc), "--seconds", f"{limit:g}", "--seed", str(seed)]
    command += ["--device", "cpu"] if choice.device == "cpu" else []
    command += ["--until", f"{until:g}"] if until else []
    folder = new_folder(out)
    received = screen_gpus(
        folder,
        choice.device,
        choice.nproc,
        seed,
        limit,
        command,
        names=names,
        tiles=tiles_for(until) if until else 0,
        idle=idle,
        progress=lambda text: None if quiet else console.print(text, highlight=False, markup=False),
    )
    presented = output.present(folder, console, announced=True)
    raise typer.Exit(128 + received if received else output.exit_code(presented))


def screen_gpus(
    folder: Path,
    device: str,
    nproc: int,
    seed: int,
    seconds: float,
    command: list[str],
    *,
    names: list[str] | None = None,
    tiles: int = 0,
    idle: bool = False,
    plants: Sequence[Mapping[str, Any]] = (),
    progress: Any = lambda text: None,
) -> int:
    """Screens the GPUs of this node into a run folder; gives the signal that ended it, or 0.

    Args:
        folder: is there.
        seconds, tiles, idle, plants: as :class:`gpucheck.tools.screen.screening.Screening` takes them.
    """
    from gpucheck.host.kernel_log import KernelLog
    from gpucheck.host.processes import on_signals
    from gpucheck.host.software import changes, software
    from gpucheck.launch.torchrun import keep_driver_messages
    from gpucheck.plan.bind import this_machine
    from gpucheck.records.run_folder import write_json
    from gpucheck.tools.screen.screening import Screening, planned

    plan = planned(device, nproc, seed, this_machine(None), command, names or [])
    received: list[int] = []
    with on_signals(lambda got, _: received.append(got)), closing(KernelLog(gpus=device == "cuda")) as log:
        screening = Screening(
            folder,
            plan,
            seconds,
            tiles,
            idle,
            plants,
            progress=progress,
            interrupted=lambda: received[0] if received else 0,
        )
        outcome = screening.run()
        keep_driver_messages(log, plan, folder)
    changed = changes(plan.environment["software"], software(None))
    write_json(folder / "outcome.json", {**outcome, "changes": changed})
    return received[0] if received else 0
