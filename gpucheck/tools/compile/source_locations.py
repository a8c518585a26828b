"""Where in the source an error belongs: compilers count lines in their own way, and the library rewrites kernels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_stack, walk_tb
from types import FrameType, TracebackType

from gpucheck.host.text_file import text_of

LOC = re.compile(r"\s*\.loc\s+(?P<file>\d+)\s+(?P<line>\d+)")
FILE = re.compile(r"\s*\.file\s+(?P<number>\d+)\s+\"(?P<name>[^\"]+)\"")


@dataclass(frozen=True)
class Place:
    """A line of a file."""

    path: str
    line: int


class Sources:
    """The folders of source that is worth naming: the library's and those of our own that hold or launch kernels."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._roots = [(folder.resolve(), _base(folder.resolve())) for folder in folders]
        self._lines: dict[Path, list[str]] = {}

    def name(self, place: Place) -> str:
        """``package/file.py:line``; the file's own name outside of the folders."""
        path = Path(place.path).resolve()
        for folder, base in self._roots:
            if folder in path.parents:
                return f"{path.relative_to(base).as_posix()}:{place.line}"
        return f"{path.name}:{place.line}"

    def code(self, place: Place) -> str:
        """The text of the line; "" where there is none."""
        lines = self._read(Path(place.path))
        return lines[place.line - 1].strip() if 0 < place.line <= len(lines) else ""

    def holds(self, path: str) -> bool:
        """Whether a file lies in one of the folders."""
        resolved = Path(path).resolve()
        return any(folder in resolved.parents for folder, _ in self._roots)

    def of_text(self, source: str, line: int) -> Place | None:
        """Where a line of a function's text stands in the folders.

        The text may have been dedented, or rewritten in its first lines, as the library does when it binds constants:
        the lines around the wanted one must be those of the file, and the longest such stretch wins.

        Args:
            source: the text.
            line: in it, from 1.
        """
        wanted = [entry.strip() for entry in source.splitlines()]
        index = line - 1
        if not 0 <= index < len(wanted) or not wanted[index]:
            return None
        found = max(self._stretches(wanted, index), default=None)
        return None if found is None else Place(found[1], found[2] + 1)

    def of_function(self, source: str) -> Place | None:
        """Where the ``def`` of a function's text stands in the folders."""
        for number in range(1, len(source.splitlines()) + 1):
            place = self.of_text(source, number)
            if place:
                lines = self._read(Path(place.path))[: place.line]
                above = [at for at, line in enumerate(lines, start=1) if line.lstrip().startswith("def ")]
                return Place(place.path, above[-1]) if above else place
        return None

    def _stretches(self, wanted: list[str], index: int) -> Iterator[tuple[int, str, int]]:
        """Length, file and line (from 0) of each stretch of equal lines around the wanted one."""
        for folder, _ in self._roots:
            for path in sorted(folder.rglob("*.py")):
                lines = [entry.strip() for entry in self._read(path)]
                for at in (number for number, entry in enumerate(lines) if entry == wanted[index]):
                    before = _equal(reversed(wanted[:index]), reversed(lines[:at]))
                    yield before + 1 + _equal(wanted[index + 1 :], lines[at + 1 :]), str(path), at

    def of_traceback(self, trace: TracebackType | None) -> Place | None:
        """The innermost frame of a traceback that lies in the folders."""
        return self._first(reversed(list(walk_tb(trace))))

    def of_stack(self, frame: FrameType) -> Place | None:
        """The innermost frame of a stack that lies in the folders."""
        return self._first(walk_stack(frame))

    def _first(self, frames: Iterable[tuple[FrameType, int]]) -> Place | None:
        found = ((frame.f_code.co_filename, line) for frame, line in frames)
        return next((Place(path, line) for path, line in found if self.holds(path)), None)

    def _read(self, path: Path) -> list[str]:
        if path not in self._lines:
            self._lines[path] = text_of(path).splitlines()
        return self._lines[path]


def of_ptx(text: str, line: int) -> Place | None:
    """The place that PTX gives for one of its lines (from 1): the ``.loc`` before it."""
    files = {match["number"]: match["name"] for match in map(FILE.match, text.splitlines()) if match}
    for entry in reversed(text.splitlines()[:line]):
        match = LOC.match(entry)
        if match:
            return Place(files[match["file"]], int(match["line"])) if match["file"] in files else None
    return None


def _base(folder: Path) -> Path:
    """The folder that holds the top-level package which ``folder`` belongs to."""
    base = folder.parent
    while (base / "__init__.py").is_file():
        base = base.parent
    return base


def _equal(left: Iterable[str], right: Iterable[str]) -> int:
    """How many first items are equal."""
    count = 0
    for one, other in zip(left, right):  # noqa: B905 - they end where the shorter one does
        if one != other:
            break
        count += 1
    return count
