"""Runs a module of gpucheck in a process of its own; a crash, a hang or an import there does not reach this one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpucheck.host.forkserver import Forkserver

PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
"""The folder that holds the package gpucheck."""


def python_path(*first: Path | str, environ: Mapping[str, str] = os.environ) -> str:
    """PYTHONPATH for a Python that imports the gpucheck at hand.

    Args:
        first: folders that go ahead of all others.
        environ: its PYTHONPATH comes last. Where that names gpucheck, its order stays: the caller of this process wants
            something ahead of gpucheck, say another Triton.
    """
    inherited = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    own = [] if PACKAGE_PARENT in inherited else [PACKAGE_PARENT]
    return os.pathsep.join(dict.fromkeys([*map(str, first), *own, *inherited]))


def send(connection: Connection, message: Any) -> None:
    """Sends a message as JSON: unlike a pickle, one from a damaged process cannot run code here."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> Any:
    """The next message.

    Raises:
        EOFError, OSError: the other process has ended, or closed its connection.
        ValueError: what came is no JSON.
    """
    return json.loads(connection.recv_bytes())


def ask(module: str, question: Any, environment: Mapping[str, str], seconds: float) -> Any:
    """The answer of a module: its ``main(connection)`` receives the question and sends one message.

    Args:
        environment: of the process; its PYTHONPATH must lead to gpucheck.
        seconds: that it may take, from its start to its answer.

    Raises:
        TimeoutError: it took longer.
        ChildProcessError: it ended without an answer; the message says how, and the last line it printed.
    """
    deadline = time.monotonic() + seconds
    with Forkserver.started(module, environment) as server:
        child = server.spawn(seconds)
        try:
            send(child.connection, question)
            in_time = child.connection.poll(max(0.0, deadline - time.monotonic()))
            answer = receive(child.connection) if in_time else None
        except (EOFError, OSError, ValueError):
            raise ChildProcessError(server.last_words(server.reap(child))) from None
    if not in_time:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answer
