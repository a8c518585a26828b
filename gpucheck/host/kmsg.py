"""The kernel's own log, as ``/dev/kmsg`` gives it: one record a read."""

from __future__ import annotations

import os
from pathlib import Path

KMSG = Path("/dev/kmsg")
LARGEST = 4 << 20  # bytes of log that are read


def opened(log: Path = KMSG) -> int:
    """A descriptor that reads from the oldest record on and does not wait for further ones."""
    return os.open(log, os.O_RDONLY | os.O_NONBLOCK)


def messages(descriptor: int) -> list[str]:
    """The texts of the records from there on, oldest first."""
    content = b""
    while len(content) < LARGEST:
        try:
            record = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            break
        except BrokenPipeError:  # the record was overwritten while it was read; the next read goes on
            continue
        if not record:
            break
        content += record
    lines = content.decode(errors="replace").splitlines()
    return [line.partition(";")[2] for line in lines if ";" in line]
