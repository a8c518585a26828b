"""What the processes of one evaluation take of this machine, held against its limits while they run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucheck.host.gpu_memory import memory_used
from gpucheck.host.processes import descendants_of, resident, resident_pages

EVERY = 0.1  # s between two looks at the processes
SHARE = 10  # times of what a look took that pass until the next, on machines with many processes
FILES_EVERY = 1.0  # s between two looks at the scratch folder, which may hold many files


@dataclass(frozen=True)
class Exceeded:
    """A limit that an evaluation went beyond."""

    limit: str  # name of the field of Limits
    detail: str  # what was found, and what is allowed


class ResourceWatch:
    """Looks at the descendants of this process, all of which belong to one evaluation."""

    def __init__(self, limits: Mapping[str, Any], folder: Path, uuid: str) -> None:
        """Starts to count.

        Args:
            limits: fields of :class:`gpucheck.tools.serve.service_options.Limits`.
            folder: scratch folder of the evaluation.
            uuid: of its device; "" for the CPU.
        """
        self._limits, self._folder, self._uuid = limits, folder, uuid
        self._begin = self._next = self._files_at = time.monotonic()
        self._device_before = (memory_used(uuid) or 0) if uuid else 0
        self.peak_host = self.peak_device = self.peak_processes = 0

    def look(self) -> Exceeded | None:
        """The first limit that is exceeded; None while there is none."""
        now = time.monotonic()
        if now < self._next:
            return None
        found = self._looked()
        self._next = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - now))
        return found

    def _looked(self) -> Exceeded | None:
        seconds = time.monotonic() - self._begin
        if self._over("seconds", seconds):
            return Exceeded("seconds", f"it ran for {seconds:.0f} s, the limit is {self._limits['seconds']:g} s")
        pids = descendants_of(os.getpid())
        self.peak_processes = max(self.peak_processes, len(pids))
        if self._over("processes", len(pids)):
            return Exceeded("processes", f"it had {len(pids)} processes, the limit is {self._limits['processes']}")
        return self._host_memory(pids) or self._device_memory() or self._files()

    def _over(self, limit: str, value: float) -> bool:
        allowed = self._limits.get(limit, 0)
        return bool(allowed) and value > allowed

    def _host_memory(self, pids: set[int]) -> Exceeded | None:
        used = sum(map(resident_pages, pids))
        if used > self.peak_host or self._over("host_memory", used):
            used = sum(map(resident, pids))
        self.peak_host = max(self.peak_host, used)
        return self._too_much("host_memory", used, "of host memory")

    def _device_memory(self) -> Exceeded | None:
        if not self._uuid:
            return None
        used = max(0, (memory_used(self._uuid) or 0) - self._device_before)
        self.peak_device = max(self.peak_device, used)
        return self._too_much("device_memory", used, "of device memory")

    def _files(self) -> Exceeded | None:
        if time.monotonic() < self._files_at:
            return None
        self._files_at = time.monotonic() + FILES_EVERY
        printed = total = 0
        for parent, _, names in os.walk(self._folder):
            sizes = [_size(os.path.join(parent, name)) for name in names]
            total += sum(sizes)
            printed += sum(size for size, name in zip(sizes, names, strict=True) if name.endswith(".log"))
        over = self._too_much("output", printed, "of output")
        return over or self._too_much("files", total, "in its scratch folder")

    def _too_much(self, limit: str, used: int, words: str) -> Exceeded | None:
        if not self._over(limit, used):
            return None
        return Exceeded(
            limit, f"it had {used / 2**20:,.0f} MiB {words}, the limit is {self._limits[limit] / 2**20:,.0f} MiB"
        )


def _size(path: str) -> int:
    """Bytes that a file takes on the disk; a hole in it takes none."""
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
