"""What a process printed before it ended, in a few lines: a reason must not drown in what was printed after it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FIRST, LAST = 8, 8  # lines shown of the beginning and of the end
TELLING = 4  # lines shown of those between that look like a reason
LONGEST = 300  # characters of a line
READ = 2 << 20  # bytes read of the beginning and of the end
_TELLING = re.compile(
    r"error|exception|fatal|assert|abort|fail|missing|denied|cannot|unable|killed|reason", re.IGNORECASE
)
_FRAME = re.compile(r'\s+File "(.+)", line \d+, in ')
_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_VARIES = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True)
class Mark:
    """A place in a log file, from which on something is looked for."""

    path: Path
    start: int = 0  # bytes


def marks() -> list[Mark]:
    """The ends, as they are now, of the files that this process prints to: stderr first; no terminal and no pipe."""
    found: dict[Path, Mark] = {}
    for fd in (2, 1):
        try:
            facts, path = os.fstat(fd), Path(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
        if stat.S_ISREG(facts.st_mode) and path.exists():
            found.setdefault(path, Mark(path, facts.st_size))
    return list(found.values())


def ends(files: list[Mark], size: int = 1 << 14) -> list[Mark]:
    """The same files, from so many bytes before each mark on."""
    return [Mark(mark.path, max(0, mark.start - size)) for mark in files]


def printed(since: list[Mark]) -> list[str]:
    """What was printed from some places on: for each file its first and last lines, runs of alike lines as one."""
    return [line for mark in since for line in _excerpt(mark)]


def paths(since: list[Mark], folder: Path) -> str:
    """The files that have grown, by their paths in a folder where they lie in it; else the first of them."""
    grown = [mark.path for mark in since if mark.path.exists() and mark.path.stat().st_size > mark.start]
    shown = grown or [mark.path for mark in since[:1]]
    return ", ".join(str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in shown)


def _excerpt(mark: Mark) -> list[str]:
    """The lines to show of one file, with words for those that are left out."""
    try:
        with open(mark.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(mark.start)
            parts = [file.read(READ)]
            if size > mark.start + READ:
                file.seek(max(mark.start + READ, size - READ))
                parts.append(file.read(READ))
    except OSError:
        return []
    found = [line for part in parts for line in _alike_as_one(_of_others(part.decode(errors="replace").splitlines()))]
    if len(found) <= FIRST + LAST:
        return found
    between = found[FIRST:-LAST]
    telling = [line for line in between if _TELLING.search(line)][:TELLING]
    more = len(between) - len(telling)
    return [*found[:FIRST], *telling, *([f"... {more} more lines ..."] if more else []), *found[-LAST:]]


def _of_others(lines: list[str]) -> Iterator[str]:
    """Lines that are not blank, without the frames of gpucheck in tracebacks and the marks below those of others."""
    ours = False
    for line in lines:
        frame = _FRAME.match(line)
        if frame:
            ours = frame[1].startswith(_PACKAGE)
        elif not line.startswith("    "):
            ours = False
        if not ours and line.strip(" ^~"):
            yield line


def _alike_as_one(lines: Iterable[str]) -> Iterator[str]:
    """Lines cut to a length; further ones that differ in numbers alone are counted."""
    last, key, more = "", "", 0
    for line in [*lines, ""]:
        now = _VARIES.sub("0", line)
        if now == key:
            last, more = line, more + 1
            continue
        if more > 1:
            yield f"... {more - 1} more lines like it ..."
        if more:
            yield _cut(last)
        key, more = now, 0
        if line:
            yield _cut(line)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else line[:LONGEST] + f" ... {len(line) - LONGEST} more characters"
