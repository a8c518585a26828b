"""Takes the library out of a public wheel by HTTP range requests: some 100 kB instead of several hundred MB."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from gpucheck.library import cache as cached
from gpucheck.library.copies import GENUINE_FILES, PACKAGE, LibraryCopy
from gpucheck.library.index import OTHER_WAY, Wheel, find_versions, find_wheels, normalise, request_failure
from gpucheck.library.pip_settings import PipSettings, read_pip_settings
from gpucheck.model.errors import InfrastructureError, UsageError

_PREFIXES = (f"{PACKAGE}/", f"vllm/third_party/{PACKAGE}/")
_TEXT = frozenset({".pyi", ".typed", ".json", ".toml", ".txt", ".md"})  # taken beside .py
_READ_AHEAD = 128 << 10  # bytes
_TEXT_LIMIT = 1 << 20  # bytes of a text file that is no Python file

T = TypeVar("T")


def fetch(name: str, version: str, *, cache: Path | None = None) -> LibraryCopy:
    """The library inside the wheel of ``name==version``: from the cache, else from pip's indexes.

    Any platform's wheel serves, since only text files are taken. Each is compared with the SHA-256 in the wheel's
    RECORD. A cached copy that was changed since is reported on stderr and fetched again.

    Args:
        name: distribution, for example ``"vllm"``.
        version: exact version.
        cache: cache folder; :func:`gpucheck.library.cache.cache_root` by default.

    Raises:
        UsageError: no such release, or its wheels hold no triton_kernels.
        InfrastructureError: no network, a damaged wheel, an unwritable cache, or ``remotezip`` is not installed.
    """
    folder = cached.library_folder(name, version, cache)
    copy = _sound_copy(folder)
    if copy:
        return copy
    settings = read_pip_settings()
    with _session() as session:
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
    with _session() as session:
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
    with _session() as session:
        wheels = find_wheels(name, version, settings, session)
        ranked = [(rank, number) for number, wheel in enumerate(wheels) if (rank := suits(wheel.filename)) is not None]
        if not ranked:
            return None
        hashes = _read_wheel(wheels[min(ranked)[1]], settings, session, lambda archive, _: _record_hashes(archive))
    installed = sorted(item for item in hashes.items() if ".dist-info/" not in item[0])
    return hashlib.sha256(repr(installed or (name, version)).encode()).hexdigest()


def _sound_copy(folder: Path) -> LibraryCopy | None:
    try:
        return cached.read_cached(folder)
    except cached.Damaged as reason:
        print(f"gpucheck: the cached library {folder} is damaged ({reason}); fetching it again", file=sys.stderr)
        return None


def _session() -> Any:
    """A ``requests`` session with a few quick retries."""
    try:
        import remotezip  # noqa: F401 - it brings requests along
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry
    except ImportError as error:
        raise InfrastructureError(
            f"taking the library out of a wheel needs the package {error.name}, which is not installed.\n"
            f"  do  pip install remotezip\n  or  {OTHER_WAY}"
        ) from error
    session = requests.Session()
    retry = Retry(total=2, backoff_factor=0.2, status_forcelist=(502, 503, 504), raise_on_status=False)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _first_with_library(wheels: list[Wheel], settings: PipSettings, session: Any) -> tuple[Wheel, dict[str, bytes]]:
    for wheel in wheels:
        files = _read_wheel(wheel, settings, session, _library_files)
        if files:
            return wheel, files
    raise UsageError(
        f"the wheels of this release hold no genuine {PACKAGE}: {', '.join(wheel.filename for wheel in wheels[:4])}.\n"
        f"  looked for  {' and '.join(_PREFIXES)} with {', '.join(GENUINE_FILES)}\n"
        "  see         `gpucheck library list` for releases that carry it\n"
        f"  or          {OTHER_WAY}"
    )


def _read_wheel(
    wheel: Wheel, settings: PipSettings, session: Any, read: Callable[[zipfile.ZipFile, Wheel], dict[str, T]]
) -> dict[str, T]:
    """What ``read`` takes from a wheel."""
    import remotezip
    import requests

    try:
        with _open(wheel, settings, session) as archive:
            return read(archive, wheel)
    except remotezip.RangeNotSupported:
        why = "its server does not answer range requests; download and unpack the wheel yourself"
    except (zipfile.BadZipFile, zlib.error, EOFError):
        why = "it is no sound zip archive"
    except (remotezip.RemoteZipError, requests.RequestException, OSError) as error:
        why = request_failure(error)
    raise InfrastructureError(
        f"cannot read {wheel.filename} from {wheel.address.host}: {why}.\n  or  {OTHER_WAY}"
    ) from None


def _open(wheel: Wheel, settings: PipSettings, session: Any) -> zipfile.ZipFile:
    """The wheel as an archive whose members are read on demand."""
    parts = urlsplit(wheel.address.url)
    if parts.scheme == "file":
        return zipfile.ZipFile(url2pathname(parts.path))
    import remotezip

    options = {"session": session, "fetcher": _read_ahead_fetcher(), **settings.request_options(wheel.address)}
    try:
        return remotezip.RemoteZip(wheel.address.url, **options)
    except remotezip.RangeNotSupported:
        raise
    except remotezip.RemoteZipError:  # some servers refuse a range counted from the end
        return remotezip.RemoteZip(wheel.address.url, support_suffix_range=False, **options)


def _read_ahead_fetcher() -> type:
    """A fetcher that asks for more than one member at once: the library's files lie side by side in a wheel."""
    import remotezip

    class ReadAhead(remotezip.RemoteFetcher):
        start = 0  # offset in the wheel of the bytes at hand
        data = b""

        def fetch(self, data_range: tuple[int, int | None], stream: bool = False) -> Any:
            first, last = data_range
            if last is None:
                return super().fetch(data_range, stream)
            if first < self.start or last >= self.start + len(self.data):
                self.data = super().fetch((first, max(last, first + _READ_AHEAD - 1))).read()
                self.start = first
            offset, size = first - self.start, last - first + 1
            return remotezip.PartialBuffer(io.BytesIO(self.data[offset : offset + size]), first, size, False)

    return ReadAhead


def _library_files(archive: zipfile.ZipFile, wheel: Wheel) -> dict[str, bytes]:
    """The library's files in one wheel, bytes by path relative to the package; empty where it carries none."""
    members = _library_members(archive)
    if not members:
        return {}
    hashes = _record_hashes(archive)
    files = {}
    for member, relative in members.items():
        data = archive.read(member)
        if _sha256(data) != hashes.get(member):
            found = "other bytes: damaged on the way, or altered" if member in hashes else "no entry in RECORD"
            raise InfrastructureError(
                f"{member} in {wheel.filename} from {wheel.address.host} does not match the wheel's RECORD.\n"
                f"  found     {found}\n"
                "  expected  its SHA-256 as RECORD gives it\n"
                f"  do        try again, or with another index; or {OTHER_WAY}"
            )
        files[relative] = data
    return files


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


def _record_hashes(archive: zipfile.ZipFile) -> dict[str, str]:
    """Member name -> urlsafe base64 SHA-256 without padding, from the wheel's RECORD."""
    record = next((name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", name)), None)
    if record is None:
        return {}
    rows = csv.reader(archive.read(record).decode("utf-8", errors="replace").splitlines())
    return {row[0]: row[1].removeprefix("sha256=") for row in rows if len(row) >= 2 and row[1].startswith("sha256=")}


def _sha256(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
