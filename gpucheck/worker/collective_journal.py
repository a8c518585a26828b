"""A file that outlives the child and holds its collective calls: it tells which rank did not come to which of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

ENTER, RETURN, WAIT, LEAVE = "enter", "return", "wait", "leave"


@dataclass(frozen=True)
class CollectiveCall:
    """One call of a function of ``torch.distributed`` by one rank."""

    operation: str  # "all_reduce"
    signature: str  # with what must agree on all of its ranks: "all_reduce bf16 x1024 sum"
    members: tuple[int, ...]  # ranks of its group, or sender and receiver
    channel: str  # name of the group, or of the pair within it
    number: int  # of the call in its channel, from 1
    inside: bool = True  # the rank is in the call, or waits for it


class CollectiveJournal:
    """Kept by a child; each call costs it two or three small writes to memory."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        self._counts: dict[str, int] = {}
        self._calls = 0

    def begin(self) -> None:
        """A case begins: what was written so far is of others."""
        os.ftruncate(self._fd, 0)
        self._counts, self._calls = {}, 0

    def enter(self, operation: str, signature: str, members: Sequence[int], channel: str) -> int:
        """A call begins; returns what names it from here on."""
        number = self._counts[channel] = self._counts.get(channel, 0) + 1
        self._calls += 1
        self._write([ENTER, operation, signature, [*members], channel, number])
        return self._calls - 1

    def returned(self, call: int) -> None:
        """An asynchronous call has returned, and goes on."""
        self._write([RETURN, call])

    def waits(self, call: int) -> None:
        """The rank waits for an asynchronous call."""
        self._write([WAIT, call])

    def leave(self, call: int) -> None:
        """A call has ended."""
        self._write([LEAVE, call])

    def _write(self, entry: list[object]) -> None:
        os.write(self._fd, json.dumps(entry).encode() + b"\n")


def clear(path: Path) -> None:
    """Removes what a child wrote, before it is asked for another case: one that never begins has called nothing."""
    with suppress(FileNotFoundError):
        os.truncate(path, 0)


def read(path: Path) -> list[CollectiveCall]:
    """The calls of the last case in their order; those before a line that cannot be read."""
    calls: list[CollectiveCall] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            kind, *rest = json.loads(line)
            if kind == ENTER:
                operation, signature, members, channel, number = rest
                calls.append(CollectiveCall(operation, signature, tuple(members), channel, number))
            else:
                calls[rest[0]] = replace(calls[rest[0]], inside=kind == WAIT)
        except (ValueError, IndexError, TypeError):  # the last line of a process that died may be cut
            break
    return calls
