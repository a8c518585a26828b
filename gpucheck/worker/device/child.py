"""The child: a process that owns the device, runs kernels and judges nothing."""

from __future__ import annotations

import faulthandler
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.worker import hang_stacks
from gpucheck.worker.protocol import Ahead

if TYPE_CHECKING:
    from gpucheck.worker.protocol import Request, Setup


def serve(connection: Connection) -> None:
    """Receives a Setup and answers "" or what went wrong; then serves requests until the connection closes.

    The answer to a request is a list of replies, one for each device of the process. A process that receives an Ahead
    instead of a Setup compiles these cases and ends.
    """
    faulthandler.enable(sys.stderr)
    try:
        setup: Setup | Ahead = connection.recv()
        if isinstance(setup, Ahead):
            from gpucheck.worker.device import precompile

            precompile.work(setup)
            return
        hang_stacks.register(Path(setup.stacks))
        try:
            from gpucheck.worker.device import gpu_process

            process = gpu_process.start(setup)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            raise
        connection.send("")
        while True:
            request: Request = connection.recv()
            connection.send(process.run(request))
    except (EOFError, ConnectionResetError):
        return
