"""The child: a process that owns the device, runs kernels and judges nothing."""

from __future__ import annotations

import faulthandler
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.worker import stacks

if TYPE_CHECKING:
    from gpucheck.worker.protocol import Request, Setup


def serve(connection: Connection) -> None:
    """Takes a setup and answers what went wrong with it, or ""; then requests until the connection closes.

    The answer to a request is a list of replies, one for each device of the process.
    """
    faulthandler.enable(sys.stderr)
    try:
        setup: Setup = connection.recv()
        stacks.register(Path(setup.stacks))
        try:
            from gpucheck.worker import processes

            process = processes.start(setup)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            raise
        connection.send("")
        while True:
            request: Request = connection.recv()
            connection.send(process.run(request))
    except EOFError:
        return
