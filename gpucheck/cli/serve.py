"""``gpucheck serve``: evaluates candidates over HTTP, in the wire formats of TritonForge and KernelGYM."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from gpucheck.cli.options import check_seconds, require, time_span
from gpucheck.model.errors import InfrastructureError, UsageError

PACKAGES = ("fastapi", "uvicorn")
MIB, GIB = 2**20, 2**30
SHARE_OF_MEMORY = 0.8  # of the host's, for the evaluations of all devices together


def serve(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 18188,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    devices: Annotated[str, typer.Option(help="GPUs by number, such as 0,1; auto for all; cpu for none.")] = "auto",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Its text is the token that each request needs.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the queue.", show_default="~/.local/state/gpucheck/serve-PORT"),
    ] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", help="Seconds that an evaluation may take.")] = 600.0,
    host_memory: Annotated[
        float | None,
        typer.Option(
            "--host-memory",
            min=0.25,
            metavar="GIB",
            help="Host memory of an evaluation.",
            show_default="its share of 80%",
        ),
    ] = None,
    device_memory: Annotated[
        float | None,
        typer.Option(
            "--device-memory", min=0.25, metavar="GIB", help="Memory on its device.", show_default="all of it"
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=8, help="Processes of an evaluation at one time.")] = 256,
    output: Annotated[float, typer.Option(min=0.1, metavar="MIB", help="What an evaluation may print.")] = 16.0,
    files: Annotated[
        float | None, typer.Option(min=1, metavar="GIB", help="What it may write.", show_default="half of what is free")
    ] = None,
    share: Annotated[int, typer.Option(min=1, max=16, help="Evaluations on a device while no times are taken.")] = 2,
    queue: Annotated[int, typer.Option(min=1, help="Evaluations that may wait.")] = 1000,
    body: Annotated[float, typer.Option(min=0.01, metavar="MIB", help="Size of a request.")] = 4.0,
    grace: Annotated[str, typer.Option(metavar="TIME", help="What running evaluations have after SIGTERM.")] = "30s",
) -> None:
    """Evaluate candidates over HTTP: each in a fresh process, judged as `run --problem --candidate` judges."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InfrastructureError(
            f"gpucheck serve needs {' and '.join(missing)}: install them with pip install 'gpucheck-harness[serve]'"
        )
    from gpucheck.launch.gpus import choose
    from gpucheck.tools.serve import device_pool
    from gpucheck.tools.serve.service_options import Limits, ServiceOptions, default_state
    from gpucheck.tools.serve.service_options import host_memory as memory_here

    check_seconds("--time-limit", time_limit)
    token = _token(token_file) if token_file else ""
    require("torch", "triton")
    found = device_pool.find(devices, choose(device_pool.asked(devices), None).device)
    folder = (state or default_state(port)).absolute()
    slots = len(found) * (share if found[0].uuid == "" else 1)
    memory = host_memory * GIB if host_memory else SHARE_OF_MEMORY * memory_here() / max(1, slots)
    limits = Limits(
        time_limit, int(memory), int((device_memory or 0) * GIB), processes, int(output * MIB), _room(files, folder)
    )
    options = ServiceOptions(
        state=folder,
        host=host,
        port=port,
        token=token,
        limits=limits,
        share=share,
        queue=queue,
        body=int(body * MIB),
        grace=time_span("--grace", grace),
    )
    if not options.local and not token:
        raise UsageError(
            f"--host {host} lets other machines in, expected --token-file FILE with it: who may ask may run code here"
        )
    from gpucheck.tools.serve.http_service import serve as run

    names = ", ".join(f"{device.number}: {device.name}" for device in found)
    typer.echo(f"gpucheck serve on http://{host}:{port}  devices {names}  queue {options.state}", err=True)
    run(options, found)


def _room(files: float | None, folder: Path) -> int:
    """Bytes that an evaluation may write in its scratch folder."""
    if files is not None:
        return int(files * GIB)
    existing = next(each for each in (folder, *folder.parents) if each.is_dir())
    return shutil.disk_usage(existing).free // 2


def _token(path: Path) -> str:
    """The token in a file.

    Raises:
        UsageError: it cannot be read, holds none, or one that can be guessed.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {path} cannot be read: {error}") from None
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"--token-file {path}: expected one line of at least 16 ASCII characters without blanks")
    return token
