"""A small file that outlives the child and holds its last launch: it tells where a process died or hung."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpucheck.model.record import Underway

SIZE = 4096  # bytes; every entry is written whole, in one call, over the one before


@dataclass(frozen=True)
class Entry:
    """The last entry of a journal."""

    kernels: tuple[str, ...] = ()  # under test
    underway: Underway | None = None


class Journal:
    """Kept by a child; each launch costs it one small write to memory."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._kernels: tuple[str, ...] = ()
        self._open = 0
        self._last: dict[str, str] = {}

    def case(self, kernels: tuple[str, ...]) -> None:
        """A case begins that tests these kernels."""
        self._kernels, self._open, self._last = kernels, 0, {}
        self._write({})

    def launch(self, kernel: str, source: str) -> None:
        """A launch begins."""
        self._open += 1
        self._last = {"kernel": kernel, "source": source}
        self._write({**self._last, "open": self._open})

    def returned(self) -> None:
        """The last launch has been waited for and returned; what it did to the device may show at the next call."""
        self._open = 0
        self._write({**self._last, "open": 0})

    def settled(self) -> None:
        """Everything launched has ended."""
        if self._last:
            self._open, self._last = 0, {}
            self._write({})

    def _write(self, underway: Mapping[str, str | int]) -> None:
        text = json.dumps({"kernels": self._kernels, **underway})
        os.pwrite(self._fd, text.encode().ljust(SIZE)[:SIZE], 0)


def read(path: Path) -> Entry:
    """The last entry; an empty one where there is none that can be read."""
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
        underway = Underway(item["kernel"], item["source"], item["open"]) if "kernel" in item else None
        return Entry(tuple(item["kernels"]), underway)
    except (OSError, ValueError, KeyError, TypeError):
        return Entry()
