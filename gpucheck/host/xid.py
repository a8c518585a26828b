"""Xid messages of NVIDIA's driver in the kernel log: one a GPU error, by number."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

XID = re.compile(r"NVRM: Xid \(PCI:(?P<bus>[^)]+)\): (?P<number>\d+),?\s*(?P<text>.*)")
LARGEST = 4 << 20  # bytes of log that are read

HARDWARE = {
    48: "uncorrectable memory error",
    62: "internal microcontroller halt",
    63: "memory row remapped or page retired",
    64: "memory row could not be remapped",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    92: "many correctable memory errors",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "the GPU's system processor does not answer",
    120: "error of the GPU's system processor",
    136: "links are not ready",
    140: "unrecovered memory error",
    143: "the GPU could not be initialised",
    145: "NVLink error",
    149: "NVLink error",
    150: "NVLink error",
    154: "the GPU needs a recovery action",
}
"""Xid numbers that tell of the GPU, its memory or its links."""

SOFTWARE = {
    13: "exception in a kernel",
    31: "a kernel accessed memory that is not mapped",
    32: "damaged command buffer",
    43: "a channel was stopped after an error of its process",
    45: "channels were cleaned up after a process ended",
    69: "exception in a kernel",
    109: "a context switch ran out of time",
}
"""Xid numbers that a faulty kernel causes on a healthy GPU."""


@dataclass(frozen=True)
class Xid:
    """One line about a GPU."""

    number: int
    bus: str  # PCI address, as the log writes it
    text: str

    @property
    def means(self) -> str:
        """The number in words."""
        return HARDWARE.get(self.number) or SOFTWARE.get(self.number) or "see the driver's list of Xid errors"


def xids(log: Path) -> list[Xid] | None:
    """The Xid lines of a kernel log such as ``/dev/kmsg``, oldest first; None where it cannot be read."""
    try:
        text = _read(log)
    except OSError:
        return None
    found = (XID.search(line) for line in text.splitlines())
    return [Xid(int(match["number"]), match["bus"], match["text"]) for match in found if match]


def _read(log: Path) -> str:
    return b"".join(_records(log)).decode(errors="replace")


def _records(log: Path) -> Iterator[bytes]:
    """Reads to the end and does not wait for more; the device gives one record a read."""
    descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    total = 0
    try:
        while total < LARGEST:
            try:
                record = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return
            except BrokenPipeError:  # the record was overwritten while it was read; the next read goes on
                continue
            if not record:
                return
            total += len(record)
            yield record
    finally:
        os.close(descriptor)
