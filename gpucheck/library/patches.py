"""Unified diffs applied to a private copy of the library, exactly or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from gpucheck.library import content
from gpucheck.library.copies import PACKAGE, LibraryCopy
from gpucheck.model.errors import UsageError

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")
LINE = re.compile(r"[^\n]*\n|[^\n]+")  # with its end; other characters that split lines in Python do not in a diff
NO_NEWLINE = "\\ No newline at end of file"
NOTHING = "/dev/null"


@dataclass
class _Hunk:
    """Lines that replace lines, both with their ends."""

    start: int  # index of the first old line
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


@dataclass
class _FileDiff:
    """The hunks of one file."""

    path: str  # relative to the package
    made: bool  # the file is new
    removed: bool
    hunks: list[_Hunk] = field(default_factory=list)


def patched_files(package: Path, patches: Sequence[Path]) -> dict[str, str | None]:
    """What the patches, one after the other, make of the files of a package; nothing is written.

    Paths in a diff may lead from anywhere (``a/triton_kernels/x.py``, ``a/python/triton_kernels/triton_kernels/x.py``):
    what follows the last folder ``triton_kernels`` counts; without such a folder, what follows the first.

    Returns:
        Relative path -> new text of each file that changes; None for one that is removed.

    Raises:
        UsageError: a patch cannot be read, is no unified diff, or does not apply.
    """
    texts: dict[str, str | None] = {}
    for patch in patches:
        for diff in _read(patch):
            texts[diff.path] = _apply(diff, _current(package, texts, diff.path), patch)
    return texts


def write_patched(copy: LibraryCopy, texts: Mapping[str, str | None], folder: Path) -> LibraryCopy:
    """Writes a patched copy of a library into a folder and describes it.

    Args:
        texts: as :func:`patched_files` gives them.
        folder: is made, and holds the package then.
    """
    package = folder.resolve() / PACKAGE
    shutil.copytree(copy.package, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in texts.items():
        path = package / name
        if text is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    digest = content.content_hash(package)
    return replace(copy, root=package.parent, package=package, content=digest, installed=False)


def _current(package: Path, texts: Mapping[str, str | None], name: str) -> str | None:
    if name in texts:
        return texts[name]
    path = package / name
    return path.read_bytes().decode("utf-8") if path.is_file() else None


def _read(patch: Path) -> list[_FileDiff]:
    try:
        lines = LINE.findall(patch.read_bytes().decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--patch {patch} cannot be read as text: {reason}") from None
    diffs: list[_FileDiff] = []
    number = 0
    while number < len(lines):
        if lines[number].startswith("--- ") and lines[number + 1 : number + 2] and lines[number + 1].startswith("+++ "):
            diffs.append(_header(lines[number], lines[number + 1], patch))
            number += 2
        elif lines[number].startswith("@@ ") and diffs:
            hunk, number = _hunk(lines, number, patch)
            diffs[-1].hunks.append(hunk)
        else:
            number += 1
    if not any(diff.hunks for diff in diffs):
        raise UsageError(f"--patch {patch} holds no change in the unified format (--- FILE, +++ FILE, @@)")
    return diffs


def _header(old: str, new: str, patch: Path) -> _FileDiff:
    before, after = (line[4:].split("\t")[0].strip() for line in (old, new))
    name = before if after == NOTHING else after
    parts = PurePosixPath(name).parts
    start = len(parts) - parts[::-1].index(PACKAGE) if PACKAGE in parts[:-1] else 1
    if not parts[start:] or ".." in parts or PurePosixPath(name).is_absolute():
        raise UsageError(f"--patch {patch}: {name} names no file of {PACKAGE}")
    return _FileDiff("/".join(parts[start:]), before == NOTHING, after == NOTHING)


def _hunk(lines: list[str], number: int, patch: Path) -> tuple[_Hunk, int]:
    """The hunk whose ``@@`` line has this number, and the number of the line after it."""
    match = HUNK.match(lines[number])
    if match is None:
        raise UsageError(f"--patch {patch}: line {number + 1} is no hunk header: {lines[number].rstrip()}")
    old_count, new_count = (int(count) if count is not None else 1 for count in match.group(2, 3))
    hunk = _Hunk(max(0, int(match[1]) - (old_count > 0)))
    number += 1
    while number < len(lines) and (len(hunk.old) < old_count or len(hunk.new) < new_count):
        mark, text = lines[number][:1], lines[number][1:]
        if mark in "\r\n":  # mail programs drop the blank of an empty context line
            mark, text = " ", lines[number]
        if mark not in " -+":
            break
        hunk.old += [text] * (mark in " -")
        hunk.new += [text] * (mark in " +")
        number += 1
        if number < len(lines) and lines[number].startswith(NO_NEWLINE):
            _drop_newline([side for side, marks in ((hunk.old, " -"), (hunk.new, " +")) if mark in marks])
            number += 1
    if (len(hunk.old), len(hunk.new)) != (old_count, new_count):
        raise UsageError(f"--patch {patch} ends or breaks off within a hunk, at line {number + 1}")
    return hunk, number


def _drop_newline(sides: Iterable[list[str]]) -> None:
    for side in sides:
        side[-1] = side[-1].rstrip("\r\n")


def _apply(diff: _FileDiff, text: str | None, patch: Path) -> str | None:
    if diff.made != (text is None):
        state = "exists already" if diff.made else "does not exist"
        raise UsageError(f"--patch {patch} does not apply: {diff.path} {state} in this copy of {PACKAGE}")
    lines, shift = LINE.findall(text or ""), 0
    for hunk in diff.hunks:
        start = _place(lines, hunk, hunk.start + shift)
        if start is None:
            wanted = next((line.strip() for line in hunk.old if line.strip()), "")
            raise UsageError(
                f"--patch {patch} does not apply: {diff.path} does not contain the {len(hunk.old)} lines "
                f"from {wanted!r} that it changes near line {hunk.start + 1}; is it for another release of {PACKAGE}?"
            )
        lines[start : start + len(hunk.old)] = hunk.new
        shift = start - hunk.start + len(hunk.new) - len(hunk.old)
    return None if diff.removed else "".join(lines)


def _place(lines: list[str], hunk: _Hunk, expected: int) -> int | None:
    """Where the old lines of a hunk stand: at the expected index, else at the nearest one; None if nowhere."""
    size = len(hunk.old)
    starts = sorted(range(len(lines) - size + 1), key=lambda start: abs(start - expected))
    return next((start for start in starts if lines[start : start + size] == hunk.old), None)
