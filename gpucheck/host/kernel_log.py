"""What the kernel and the GPUs' driver say while a run is under way: Xid messages, memory errors, the OOM killer.

All of it is evidence that may be had or not: a log that may not be read, a driver without tools, a GPU without error
correction tell nothing and disturb nothing. Where nvidia-ml-py is installed, NVML is listened to as well: it tells Xid
errors in a pod without the kernel's log too, and remapped rows, links and clocks beside them.
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
from gpucheck.host.nvml_process import new_memory_errors
from gpucheck.host.nvml_words import Heard, NvmlListener
from gpucheck.host.xid import XID, Xid

TELLING = re.compile(r"NVRM: |[Oo]ut of memory: Killed process|oom-kill:")
PLAIN = re.compile(r"NVRM: (GPU Board Serial Number|GPU at PCI:\S+ GPU-|loading )")
"""Lines that only name a GPU or the driver: they come with others that say what is wrong."""
_COUNTERS = {
    "ecc.errors.uncorrected.volatile.total": "uncorrected",
    "ecc.errors.corrected.volatile.total": "corrected",
}
"""Field of nvidia-smi -> kind of memory errors."""
MOST_MESSAGES = 50
LONGEST = 300  # characters of a message
JOURNAL = ["journalctl", "--dmesg", "--output=cat", "--quiet"]
PATIENCE = 3.0  # s for a tool to answer


@dataclass(frozen=True)
class Gpu:
    """A GPU that a rank of this node runs on."""

    index: str  # nvidia-smi's number
    uuid: str
    bus: str  # PCI address
    errors: dict[str, int]  # counter -> count


class KernelLog:
    """Listens from its making on.

    Args:
        gpus: whether the ranks run on GPUs, so that NVML is listened to and memory errors are asked for.
    """

    def __init__(self, *, gpus: bool, kmsg: Path = KMSG) -> None:
        self._nvml = NvmlListener.started() if gpus else None
        self._fd: int | None = None
        self._cursor = ""
        try:
            self._fd = opened(kmsg)
            with suppress(OSError):
                os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._cursor = _journal_cursor()
        self._gpus = _gpus() if gpus else []

    @property
    def process(self) -> int | None:
        """The process that listens to NVML, which ends with :meth:`finish`."""
        return self._nvml.pid if self._nvml else None

    def conclude(self) -> None:
        """Begins what :meth:`finish` waits for: the GPUs are at rest."""
        if self._nvml:
            self._nvml.conclude()

    def finish(self) -> list[dict[str, Any]]:
        """What was said since, each with the local rank whose GPU it is about, or None.

        Items have a ``text``; those about a GPU also its ``bus`` and a ``kind`` of :class:`Word`, Xids a ``number``.
        """
        told = self._nvml.finish() if self._nvml else None
        if told and not self._gpus:
            self._gpus = _of_the_ranks([Gpu(index, uuid, bus, {}) for index, uuid, bus in told.gpus])
        heard: list[dict[str, Any]] = []
        telling = [line for line in self._lines() if TELLING.search(line) and not PLAIN.search(line)]
        for line in telling[:MOST_MESSAGES]:
            item: dict[str, Any] = {"local_rank": None, "text": line[:LONGEST]}
            if match := XID.search(line):
                xid = Xid(int(match["number"]), match["bus"], match["text"])
                item["text"] += f" ({xid.means})"
                item |= {
                    "local_rank": self._rank(xid.bus),
                    "kind": xid.kind,
                    "number": xid.number,
                    "bus": bus_id(xid.bus),
                }
            heard.append(item)
        return heard + (self._told_by_nvml(told, heard) if told else self._memory_errors())

    def close(self) -> None:
        """Ends the process that listens, where :meth:`finish` was not called."""
        if self._nvml:
            self._nvml.close()

    def _rank(self, bus: str) -> int | None:
        return next((rank for rank, gpu in enumerate(self._gpus) if bus_id(gpu.bus) == bus_id(bus)), None)

    def _told_by_nvml(self, told: Heard, logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The words of NVML, without Xid errors of which the kernel's log says more.

        Of GPUs that no rank runs on, where the ranks' are known, only Xid errors are told.
        """
        known = {(item["bus"], item["number"]) for item in logged if "number" in item}
        items = []
        for word in told.words:
            bus, rank = bus_id(word.bus), self._rank(word.bus)
            if (bus, word.number) in known or (rank is None and self._gpus and not word.number):
                continue
            text = word.text if rank is not None or word.number else f"GPU {bus}: {word.text}"
            item: dict[str, Any] = {"local_rank": rank, "text": text, "kind": word.kind, "bus": bus}
            items.append({**item, "number": word.number} if word.number else item)
        return items

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
            {
                "local_rank": rank,
                "text": new_memory_errors(kind, now.errors[name] - count, now.errors[name]),
                "kind": kind,
                "bus": bus_id(now.bus),
            }
            for rank, (before, now) in enumerate(zip(self._gpus, after, strict=True))
            for name, kind in _COUNTERS.items()
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
    return _of_the_ranks(
        [
            Gpu(index, uuid, bus, {name: int(n) for name, n in zip(names, counts, strict=True) if n.isdigit()})
            for index, uuid, bus, *counts in rows
        ]
    )


def _of_the_ranks(gpus: list[Gpu]) -> list[Gpu]:
    return [gpus[place] for place in places([(gpu.index, gpu.uuid) for gpu in gpus])]


def _journal_cursor() -> str:
    shown = _run([*JOURNAL, "--lines=0", "--show-cursor"])
    return next((line.partition(":")[2].strip() for line in shown.splitlines() if line.startswith("-- cursor")), "")


def _run(command: list[str]) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout if not answer.returncode else ""
