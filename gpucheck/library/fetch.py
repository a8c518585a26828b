"""Takes the library out of a public wheel by HTTP range requests: some 100 kB instead of several hundred MB."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from gpucheck.library import cache as cached
from gpucheck.library import wheel_reader
from gpucheck.library.copies import GENUINE_FILES, PACKAGE, LibraryCopy
from gpucheck.library.index import OTHER_WAY, Wheel, find_versions, find_wheels, normalise
from gpucheck.library.pip_settings import PipSettings, read_pip_settings
from gpucheck.library.wheel_reader import read_members, read_wheel, record_hashes
from gpucheck.model.errors import InfrastructureError, UsageError

_PREFIXES = (f"{PACKAGE}/", f"vllm/third_party/{PACKAGE}/")
_TEXT = frozenset({".pyi", ".typed", ".json", ".toml", ".txt", ".md"})  # taken beside .py
_TEXT_LIMIT = 1 << 20  # bytes of a text file that is no Python file


def fetch(name: str, version: str, *, cache: Path | None = None) -> LibraryCopy:
    """The library inside the wheel of ``name==version``: from the cache, else from pip's indexes.

    Any platform's wheel serves, since only text files are taken. Each is compared with the SHA-256 in the wheel's
    RECORD. A cached copy that was changed since is reported on stderr and fetched again.

    Args:
        name: distribution, for example ``"vllm"``.
        version: exact version.
        cache: cache folder; :func:`gpucheck.library.cache_folder.cache_root` by default.

    Raises:
        UsageError: no such release, or its wheels hold no triton_kernels.
        InfrastructureError: no network, a damaged wheel, an unwritable cache, or ``remotezip`` is not installed.
    """
    folder = cached.library_folder(name, version, cache)
    copy = _sound_copy(folder)
    if copy:
        return copy
    settings = read_pip_settings()
    with wheel_reader.session() as session:
        wheels = find_wheels(name, version, settings, session)
        wheel, files = _first_with_library(wheels, settings, session)
    cached.store(folder, files, cached.Origin(normalise(name), version, wheel.filename, wheel.yanked))
    copy = _sound_copy(folder)
    if copy is None:
        raise InfrastructureError(f"the copy just stored in {folder} is gone or was changed; run the command again")
    return copy


def offered_versions(name: str) -> dict[str, bool]:
    """The versions of a distribution that have wheels on pip's indexes, and whether each is yanked.

    Raises:
        UsageError: no index knows the distribution.
        InfrastructureError: an index could not be asked, or ``remotezip`` is not installed.
    """
    settings = read_pip_settings()
    with wheel_reader.session() as session:
        return find_versions(name, settings, session)


def recorded_content(name: str, version: str, suits: Callable[[str], int | None]) -> str | None:
    """What the best suited wheel of ``name==version`` installs: a hash over its RECORD, read without the rest.

    The wheel's own metadata are left out, so two versions that differ in nothing else have equal hashes; a wheel whose
    RECORD holds none is equal to no other.

    Args:
        suits: how well the wheel of a file name suits, 0 is best; None: it does not.

    Returns:
        None where no wheel suits.

    Raises:
        UsageError: no such release.
        InfrastructureError: no network, a damaged wheel, a server without range requests, or no ``remotezip``.
    """
    settings = read_pip_settings()
    with wheel_reader.session() as session:
        wheels = find_wheels(name, version, settings, session)
        ranked = [(rank, number) for number, wheel in enumerate(wheels) if (rank := suits(wheel.filename)) is not None]
        if not ranked:
            return None
        hashes = read_wheel(wheels[min(ranked)[1]], settings, session, lambda archive, _: record_hashes(archive))
    installed = sorted(item for item in hashes.items() if ".dist-info/" not in item[0])
    return hashlib.sha256(repr(installed or (name, version)).encode()).hexdigest()


def _sound_copy(folder: Path) -> LibraryCopy | None:
    try:
        return cached.read_cached(folder)
    except cached.Damaged as reason:
        print(f"gpucheck: the cached library {folder} is damaged ({reason}); fetching it again", file=sys.stderr)
        return None


def _first_with_library(wheels: list[Wheel], settings: PipSettings, session: Any) -> tuple[Wheel, dict[str, bytes]]:
    for wheel in wheels:
        files = read_wheel(wheel, settings, session, _library_files)
        if files:
            return wheel, files
    raise UsageError(
        f"the wheels of this release hold no genuine {PACKAGE}: {', '.join(wheel.filename for wheel in wheels[:4])}.\n"
        f"  looked for  {' and '.join(_PREFIXES)} with {', '.join(GENUINE_FILES)}\n"
        "  see         `gpucheck library list` for releases that carry it\n"
        f"  or          {OTHER_WAY}"
    )


def _library_files(archive: zipfile.ZipFile, wheel: Wheel) -> dict[str, bytes]:
    """The library's files in one wheel, bytes by path relative to the package; empty where it carries none."""
    members = _library_members(archive)
    if not members:
        return {}
    return {members[name]: data for name, data in read_members(archive, wheel, map(archive.getinfo, members)).items()}


def _library_members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Member name -> path relative to the package, in the order of the archive; empty where none is genuine."""
    in_order = sorted(archive.infolist(), key=lambda info: info.header_offset)
    for prefix in _PREFIXES:
        inside = [info for info in in_order if info.filename.startswith(prefix) and _is_wanted(info, prefix)]
        members = {info.filename: info.filename[len(prefix) :] for info in inside}
        if all(prefix + name in members for name in GENUINE_FILES):
            return members
    return {}


def _is_wanted(info: zipfile.ZipInfo, prefix: str) -> bool:
    path = PurePosixPath(info.filename[len(prefix) :])
    if path.is_absolute() or ".." in path.parts:
        return False
    return path.suffix == ".py" or (path.suffix in _TEXT and info.file_size <= _TEXT_LIMIT)
