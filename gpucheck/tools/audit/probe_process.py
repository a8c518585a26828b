"""What the probing process does, see :mod:`gpucheck.tools.audit.probe`."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpucheck.host.isolated import receive, send
from gpucheck.model.errors import GpucheckError, Inapplicable


def main(connection: Connection) -> None:
    """Answers one question."""
    asked = receive(connection)
    try:
        result: dict[str, Any] = {"answers": _answers(asked)}
    except (Inapplicable, GpucheckError) as error:
        result = {"problem": str(error)}
    send(connection, result)


def _answers(asked: dict[str, Any]) -> list[tuple[bool | None, str]]:
    from gpucheck.library.adapters import load
    from gpucheck.triton_hooks import interpreter

    interpreter.install()
    before = set(sys.modules)
    adapter = load(Path(asked["root"]), asked["generation"])
    from gpucheck.tools.audit.probes.base import Probing
    from gpucheck.tools.audit.probes.probe_table import PROBES

    return Probing(adapter, Path(asked["package"]), asked["hazards"], before, PROBES).answers()
