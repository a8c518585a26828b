"""The cache of libraries from wheels: ``<cache>/libraries/<name>-<version>/`` with the package and origin.json."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpucheck.library.cache_folder import cache_root
from gpucheck.library.content import content_hash
from gpucheck.library.copies import PACKAGE, LibraryCopy, describe, missing_files
from gpucheck.library.index import normalise
from gpucheck.model.errors import InfrastructureError

_ORIGIN = "origin.json"


@dataclass(frozen=True)
class Origin:
    """What ``origin.json`` says of a cached copy; no addresses, they may hold credentials."""

    name: str
    version: str
    wheel: str  # file name
    yanked: bool = False
    content: str = ""  # content hash of what was stored; filled by :func:`store`

    def __str__(self) -> str:
        return f"{self.name} {self.version}{' (yanked)' if self.yanked else ''}"


class Damaged(Exception):
    """A cached copy is not what was stored; the text says why."""


def split_requirement(text: str) -> tuple[str, str] | None:
    """``NAME==VERSION`` as (name, version); None where the text is something else."""
    name, _, version = (part.strip() for part in text.partition("=="))
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name) and re.fullmatch(
        r"\w[\w.+!-]*", version, re.ASCII
    ):
        return name, version
    return None


def library_folder(name: str, version: str, cache: Path | None = None) -> Path:
    """Where a release's library lies in the cache; the copy's root."""
    return (cache or cache_root()) / "libraries" / f"{normalise(name)}-{version.lower()}"


def read_cached(folder: Path) -> LibraryCopy | None:
    """The cached copy in ``folder``; None where there is none.

    Raises:
        Damaged: its files are not those that were stored.
        UsageError: it is of no supported generation.
    """
    if not folder.is_dir():
        return None
    try:
        origin = Origin(**json.loads((folder / _ORIGIN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise Damaged(f"{_ORIGIN} is missing or unreadable") from None
    missing = missing_files(folder / PACKAGE)
    if missing:
        raise Damaged(f"{', '.join(missing)} missing")
    try:
        if content_hash(folder / PACKAGE) != origin.content:
            raise Damaged("its files were changed")
        return describe(folder / PACKAGE, str(origin))
    except InfrastructureError as error:  # a file cannot be read, or another process is replacing the copy
        raise Damaged(str(error)) from error


def cached_folders(cache: Path | None = None) -> list[Path]:
    """Folders of all cached copies, sound or not, by name."""
    try:
        entries = sorted((cache or cache_root()).joinpath("libraries").iterdir())
    except OSError:
        return []
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def store(destination: Path, files: Mapping[str, bytes], origin: Origin) -> None:
    """Writes a package and its origin into a folder of the cache, which appears in one step.

    Where another process has stored the same release meanwhile, the sound copy that is there stays.

    Args:
        destination: from :func:`library_folder`.
        files: bytes by path relative to the package.
        origin: where they come from.

    Raises:
        InfrastructureError: the cache cannot be written.
    """
    with writable(destination.parent, ", or use --library path:DIR"), locked(destination.parent):
        if _is_sound(destination):
            return
        with fresh_folder(destination) as folder:
            for relative, data in files.items():
                path = folder / PACKAGE / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            stored = replace(origin, content=content_hash(folder / PACKAGE))
            (folder / _ORIGIN).write_text(json.dumps(asdict(stored), indent=2) + "\n", encoding="utf-8")


@contextmanager
def writable(folder: Path, otherwise: str = "") -> Iterator[None]:
    """Makes a folder of the cache, and goes around all that is written there.

    Args:
        otherwise: completes what a user is told to do, where there is more than to choose another cache.

    Raises:
        InfrastructureError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InfrastructureError(
            f"cannot write the cache {folder}: {error.strerror or error}.\n"
            f"  do  set GPUCHECK_CACHE_DIR to a folder you can write{otherwise}"
        ) from error


@contextmanager
def fresh_folder(destination: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``destination`` at the end, in one step; not at all after an exception.

    So what is there is complete, whoever is killed meanwhile. What was there before is removed.
    """
    with tempfile.TemporaryDirectory(prefix=".new-", dir=destination.parent) as temporary:
        fresh = Path(temporary, destination.name)
        fresh.mkdir()
        yield fresh
        if destination.exists():
            os.rename(destination, Path(temporary, "replaced"))
        os.rename(fresh, destination)


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Holds a lock of a folder of the cache; nodes that share the file system wait too, where it can lock."""
    import fcntl

    with open(folder / name, "w") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_sound(folder: Path) -> bool:
    try:
        return read_cached(folder) is not None
    except Damaged:
        return False
