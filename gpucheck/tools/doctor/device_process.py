"""What a process does that tries things, see ``perform.py``: it is forked from one that has torch."""

from __future__ import annotations

import traceback
from multiprocessing.connection import Connection

from gpucheck.host.isolated import receive, send
from gpucheck.model.errors import error_line
from gpucheck.tools.doctor import operations


def preload() -> None:
    """Loads torch, which touches no GPU by that."""
    import torch  # noqa: F401


def main(connection: Connection) -> None:
    """Does one operation after the other and answers with the outcome of each, until nobody asks any more."""
    while True:
        try:
            function, subject = receive(connection)
        except EOFError:
            return
        try:
            outcome = {"outcome": "done", **getattr(operations, function)(subject)}
        except BaseException as error:
            traceback.print_exc()
            outcome = {"outcome": "raised", "message": error_line(error)}
        send(connection, outcome)
