"""Xid messages of NVIDIA's driver in the kernel log: one a GPU error, by number."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from gpucheck.host import kmsg

XID = re.compile(r"NVRM: Xid \(PCI:(?P<bus>[^)]+)\): (?P<number>\d+),?\s*(?P<text>.*)")

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

DEALT_WITH = (63, 92, 94)
"""Those of them after which the GPU computes right: the row is out of use, the bit corrected, the process ended."""

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

    @property
    def kind(self) -> str:
        """What the error is of: the GPU, the GPU which has dealt with it, or the software on it."""
        if self.number in DEALT_WITH:
            return "xid dealt with"
        return "xid of the GPU" if self.number in HARDWARE else "xid of software"


def xids(log: Path) -> list[Xid] | None:
    """The Xid lines of a kernel log such as ``/dev/kmsg``, oldest first; None where it cannot be read."""
    try:
        descriptor = kmsg.opened(log)
    except OSError:
        return None
    try:
        found = [XID.search(text) for text in kmsg.messages(descriptor)]
    finally:
        os.close(descriptor)
    return [Xid(int(match["number"]), match["bus"], match["text"]) for match in found if match]
