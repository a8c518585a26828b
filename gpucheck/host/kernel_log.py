"""What the kernel and the GPUs' driver say while a run is under way: Xid messages, memory errors, the OOM killer.

All of it is evidence that may be had or not: a log that may not be read, a driver without tools, a GPU without error
correction tell nothing and disturb nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucheck.host.kmsg import KMSG, messages, opened
from gpucheck.host.node_gpus import places
from gpucheck.host.nvidia_smi import table
from gpucheck.host.xid import XID, Xid

TELLING = re.compile(r"NVRM: |[Oo]ut of memory: Killed process|oom-kill:")
_COUNTERS = {
    "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors (ECC)",
    "ecc.errors.corrected.volatile.total": "corrected memory errors (ECC)",
}
MOST_MESSAGES = 50
LONGEST = 300  # characters of a message
JOURNAL = ["journalctl", "--dmesg", "--output=cat", "--quiet"]
PATIENCE = 3.0  # s for a tool to answer


@dataclass(frozen=True)
class Gpu:
    """A GPU that a rank of this node runs on."""

    bus: str  # PCI address, see :func:`bus_id`
    errors: dict[str, int]  # counter -> count


class KernelLog:
    """Listens from its making on.

    Args:
        gpus: whether the ranks run on GPUs, so that their memory errors are asked for.
    """

    def __init__(self, *, gpus: bool, kmsg: Path = KMSG) -> None:
        self._fd: int | None = None
        self._cursor = ""
        try:
            self._fd = opened(kmsg)
            with suppress(OSError):
                os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._cursor = _journal_cursor()
        self._gpus = _gpus() if gpus else []

    def finish(self) -> list[dict[str, Any]]:
        """What was said since, each with the local rank whose GPU it is about, or None."""
        of_bus = {gpu.bus: rank for rank, gpu in enumerate(self._gpus)}
        heard = []
        for line in [line for line in self._lines() if TELLING.search(line)][:MOST_MESSAGES]:
            match = XID.search(line)
            rank = of_bus.get(bus_id(match["bus"])) if match else None
            means = f" ({Xid(int(match['number']), match['bus'], match['text']).means})" if match else ""
            heard.append({"local_rank": rank, "text": line[:LONGEST] + means})
        return heard + self._memory_errors()

    def _lines(self) -> list[str]:
        if self._fd is not None:
            lines: list[str] = []
            with suppress(OSError):
                lines = messages(self._fd)
            os.close(self._fd)
            self._fd = None
            return lines
        if self._cursor:
            return _run([*JOURNAL, f"--after-cursor={self._cursor}"]).splitlines()
        return []

    def _memory_errors(self) -> list[dict[str, Any]]:
        after = _gpus() if any(gpu.errors for gpu in self._gpus) else []
        if [gpu.bus for gpu in after] != [gpu.bus for gpu in self._gpus]:
            return []
        return [
            {"local_rank": rank, "text": f"{now.errors[name] - count} new {words}, {now.errors[name]} since its reset"}
            for rank, (before, now) in enumerate(zip(self._gpus, after, strict=True))
            for name, words in _COUNTERS.items()
            if (count := before.errors.get(name)) is not None and now.errors.get(name, 0) > count
        ]


def bus_id(text: str) -> str:
    """A PCI address without what tools write differently: ``00000000:3B:00.0`` and ``0000:3b:00`` are ``0:3b:00``."""
    parts = text.lower().partition(".")[0].split(":")
    domain = parts[-3].lstrip("0") or "0" if len(parts) > 2 else "0"
    return ":".join([domain, *parts[-2:]])


def _gpus() -> list[Gpu]:
    """The GPUs of this node that the ranks see, in the order of the ranks."""
    names = list(_COUNTERS)
    _, rows = table(["index", "uuid", "pci.bus_id", *names], limit=PATIENCE)
    gpus = [
        Gpu(bus_id(row[2]), {name: int(count) for name, count in zip(names, row[3:], strict=True) if count.isdigit()})
        for row in rows
    ]
    return [gpus[place] for place in places([(row[0], row[1]) for row in rows])]


def _journal_cursor() -> str:
    shown = _run([*JOURNAL, "--lines=0", "--show-cursor"])
    return next((line.partition(":")[2].strip() for line in shown.splitlines() if line.startswith("-- cursor")), "")


def _run(command: list[str]) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout if not answer.returncode else ""
